"use strict";
// Looks up what torch said of a state, and shows it: nothing is computed here.
for (const root of document.querySelectorAll(".click")) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const one = selector => root.querySelector(selector);
  const all = selector => [...root.querySelectorAll(selector)];
  const net = one(".live ol.net");
  const rows = [...net.children].slice(1); // below the heads of the columns
  const switches = [...net.querySelectorAll("button")];

  const read = () => ({
    flags: switches.map(button => (button.getAttribute("aria-checked") === "true" ? "1" : "0")).join(""),
    ...Object.fromEntries(["mode", "input", "way"].map(name => [name, one(`.live input[name=${name}]:checked`).value])),
  });
  const number = state => {
    const rest = data.way.indexOf(state.way) * 4 + data.input.indexOf(state.input) * 2 + data.mode.indexOf(state.mode);
    return rest * 2 ** switches.length + [...state.flags].reduce((sum, flag, place) => sum + flag * 2 ** place, 0);
  };

  const show = (state, tell) => {
    const [gradient, passed, kept, moved, told, flops, equal, failed] = data.states[number(state)];
    const [total, sizes, widths] = data.kept[kept];
    switches.forEach((button, place) => {
      button.setAttribute("aria-checked", String(state.flags[place] === "1"));
      button.querySelector("small").textContent = data.words.flag[state.flags[place]];
      button.closest("li").classList.toggle("frozen", state.flags[place] === "0");
    });
    for (const name of ["mode", "input", "way"]) one(`.live input[name=${name}][value=${state[name]}]`).checked = true;
    rows.forEach((row, place) => {
      const part = name => row.querySelector(`.${name}`);
      const has = data.gradient[gradient][place];
      if (row.dataset.leaf) {
        const flag = row.querySelector("button")?.getAttribute("aria-checked") ?? String(state.input === "yes");
        const kind = has ? 1 : flag === "true" ? 2 : 0;
        part("gradient").firstChild.textContent = data.words.gradient[kind];
        part("gradient").className = `gradient ${["", "yes", "odd"][kind]}`;
      }
      part("passed").textContent = data.words.passed[data.passed[passed][place]];
      part("size").textContent = sizes[place];
      part("bar").style.width = `${widths[place]}%`;
      part("moved").textContent = data.moved[moved][place];
      part("moved").classList.toggle("odd", row.classList.contains("frozen"));
    });
    one(".live .total").textContent = total;
    one(".live .flops").textContent = flops;
    one(".live .equal").textContent = data.words.equal[equal];
    one(".live .told-of").textContent = data.words.told[failed];
    one(".live .told").replaceChildren(
      ...(data.told[told].length ? data.told[told] : [data.words.silent]).map(line => {
        const div = document.createElement("div");
        div.textContent = line;
        return div;
      }),
    );
    const step = steps.findIndex(step => !step.hidden);
    const changed = step >= 0 && address(state, -1) !== address(data.story[step][1], -1);
    if (step >= 0) steps[step].querySelector(".since").hidden = !changed;
    if (tell) {
      const names = rows.map(row => row.dataset.name);
      const which = list => names.filter((_, place) => list[place]).join(", ") || "nothing";
      one(".said").textContent =
        `With a gradient: ${which(data.gradient[gradient])}. A step changes entries of: ${which(data.moved[moved])}. ` +
        `Saved for backward: ${total}. ${data.words.told[failed]}: ${one(".live .told").textContent}`;
      keep(address(state, step), tell === "turned");
    }
  };
  const address = (state, step) =>
    `#${state.flags}-${state.mode}-${state.input}-${state.way}` + (step < 0 ? "" : `-step${step + 1}`);
  const keep = (place, added) => {
    try {
      if (added) history.pushState(null, "", place);
      else history.replaceState(null, "", place);
    } catch {} // a page within a page may have no address of its own
  };

  // What the address says: a state, and the step of the story that it belongs to.
  const addressed = () => {
    const [flags, mode, input, way, step = "step0"] = location.hash.slice(1).split("-");
    const fits = /^[01]{5}$/.test(flags) && data.mode.includes(mode) && data.input.includes(input);
    const told = /^step[0-5]$/.test(step) && data.way.includes(way);
    return fits && told ? { state: { flags, mode, input, way }, step: Number(step.slice(4)) - 1 } : null;
  };
  const steps = all(".step");
  const shown = place => {
    steps.forEach((step, other) => {
      step.hidden = other !== place;
      step.querySelector("details").open = false;
    });
    one(".free").hidden = place >= 0;
    all(".steps button").forEach((button, other) => {
      if (other === (place < 0 ? steps.length : place)) button.setAttribute("aria-current", "step");
      else button.removeAttribute("aria-current");
    });
  };
  const turn = place => {
    shown(place < steps.length ? place : -1);
    show(place < steps.length ? data.story[place][0] : read(), "turned");
  };
  const arrive = () => {
    const found = addressed();
    const elsewhere = !/^#[01]{2}|^#.*-(train|eval)/.test(location.hash); // another section of the page
    one(".lost").hidden = Boolean(found) || elsewhere;
    shown(found ? found.step : 0);
    if (found?.step >= 0 && address(found.state, -1) === address(data.story[found.step][1], -1))
      steps[found.step].querySelector("details").open = true;
    show(found ? found.state : data.story[0][0], false);
  };

  for (const button of switches) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-checked", String(button.getAttribute("aria-checked") !== "true"));
      show(read(), true);
    });
  }
  for (const input of all(".live input")) input.addEventListener("change", () => show(read(), true));
  all(".steps button").forEach((button, place) => button.addEventListener("click", () => turn(place)));
  steps.forEach((step, place) => {
    const answer = () => show(data.story[place][1], true);
    step.querySelector("summary").addEventListener("click", () => {
      if (!step.querySelector("details").open) answer();
    });
    step.querySelector(".since button").addEventListener("click", answer);
  });
  addEventListener("popstate", arrive);
  for (const part of all(".live, .steps")) part.hidden = false;
  arrive();
}
