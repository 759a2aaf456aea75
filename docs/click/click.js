"use strict";
// Looks up what torch said of a state, and shows it: nothing is computed here.
for (const root of document.querySelectorAll(".click")) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const one = selector => root.querySelector(selector);
  const all = selector => [...root.querySelectorAll(selector)];
  const net = one(".live ol.net");
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
    [...net.children].forEach((row, place) => {
      const part = name => row.querySelector(`.${name}`);
      const has = data.gradient[gradient][place];
      if (row.dataset.leaf) {
        part("gradient").firstChild.textContent = data.words.gradient[has];
        part("gradient").classList.toggle("yes", Boolean(has));
      }
      part("passed").textContent = data.words.passed[data.passed[passed][place]];
      part("size").textContent = sizes[place];
      part("bar").style.width = `${widths[place]}%`;
      part("moved").textContent = data.moved[moved][place];
      part("moved").classList.toggle("odd", row.classList.contains("frozen"));
    });
    one(".total").textContent = `${total} KiB`;
    one(".flops").textContent = `${flops} million FLOPs`;
    one(".equal").textContent = data.words.equal[equal];
    one(".told-of").textContent = data.words.told[failed];
    one(".told").replaceChildren(
      ...(data.told[told].length ? data.told[told] : [data.words.silent]).map(line => {
        const div = document.createElement("div");
        div.textContent = line;
        return div;
      }),
    );
    if (tell) {
      const names = [...net.children].map(row => row.dataset.name);
      const which = list => names.filter((_, place) => list[place]).join(", ") || "nothing";
      one(".said").textContent =
        `With a gradient: ${which(data.gradient[gradient])}. A step moves entries of: ${which(data.moved[moved])}. ` +
        `Kept for backward: ${total} KiB. ${data.words.told[failed]}: ${one(".told").textContent}`;
      const address = `#${state.flags}-${state.mode}-${state.input}-${state.way}`;
      try {
        history.replaceState(null, "", address);
      } catch {} // a page within a page may have no address of its own
    }
  };

  const addressed = () => {
    const [flags, mode, input, way] = location.hash.slice(1).split("-");
    const fits = /^[01]{5}$/.test(flags) && data.mode.includes(mode) && data.input.includes(input);
    return fits && data.way.includes(way) ? { flags, mode, input, way } : null;
  };
  const steps = all(".step");
  const turn = (place, tell = true) => {
    steps.forEach((step, other) => (step.hidden = other !== place));
    one(".free").hidden = place < steps.length;
    all(".steps button").forEach((button, other) => {
      if (other === place) button.setAttribute("aria-current", "step");
      else button.removeAttribute("aria-current");
    });
    if (place < steps.length) {
      steps[place].querySelector("details").open = false;
      show(data.story[place][0], tell);
    }
  };

  for (const button of switches) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-checked", String(button.getAttribute("aria-checked") !== "true"));
      show(read(), true);
    });
  }
  for (const input of all(".live input")) input.addEventListener("change", () => show(read(), true));
  all(".steps button").forEach((button, place) => button.addEventListener("click", () => turn(place)));
  steps.forEach((step, place) =>
    step.querySelector("details").addEventListener("toggle", event => {
      if (event.target.open) show(data.story[place][1], true);
    }),
  );
  addEventListener("hashchange", () => addressed() && show(addressed(), false));
  for (const part of all(".live, .steps")) part.hidden = false;
  if (addressed()) {
    turn(steps.length);
    show(addressed(), false);
  } else {
    turn(0, false);
  }
}
