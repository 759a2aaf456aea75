"""Settings of the site. Its pages are read where they are: the README, the notebooks, the docstrings of helpers."""

import inspect
import json
import shutil
import textwrap
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from helpers.auditing import RULES
from helpers.lessons import overview
from tests.tools import click, lessons, matrix

project = "Who gets a gradient?"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*", "docs/rules/*", "notebooks/**"]
exclude_patterns = ["docs/contents.md", ".*", "**/.*", "build"]
# Solutions repeat each exercise under the heading that it has in its lesson, where it is one level deeper.
suppress_warnings = ["myst.header"]
# A link to a section is written as JupyterLab wants it, with the words of the heading: notebooks/INDEX.md.
myst_heading_anchors = 3
myst_heading_slug_func = "helpers.lessons.overview.anchor"
nb_execution_mode = "off"  # shown are the stored outputs, which `make test` compares
default_role = "py:obj"  # `freeze` in a docstring is a link
html_theme = "sphinx_book_theme"
html_theme_options = {
    "navbar_persistent": [],  # the search is in the sidebar
    "use_fullscreen_button": False,
    # Those of the section in view only would fold away before Tab, which comes through the page first, reaches them.
    "show_toc_level": 2,
    "max_navbar_depth": 1,  # below it there are buttons to unfold, which have no name and show no focus
    "footer_content_items": [],
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_title = "Lessons on PyTorch"
myst_html_meta = {
    "description lang=en": "Lessons that run, on how PyTorch decides what is differentiated, what is kept in memory "
    "and what is trained: why a frozen network moves, and how to hold it.",
}
html_show_search_summary = False  # it would begin with the words of the menus
html_favicon = "icon.svg"
html_static_path = html_css_files = ["site.css"]
html_use_index = html_domain_indices = False  # the search finds what they list


class AuditRules(SphinxDirective):
    """The pages of the rules of `audit`, each with the sentence that its docstring begins with."""

    def run(self) -> list[nodes.Node]:
        pages = "".join(f"\n   rules/{name}" for name in RULES)
        sentences = {name: " ".join(inspect.getdoc(rule).split("\n\n")[0].split()) for name, rule in RULES.items()}
        listed = "".join(f"\n:doc:`{name} <rules/{name}>`\n   {told}\n" for name, told in sentences.items())
        return self.parse_text_to_nodes(f".. toctree::\n   :hidden:\n{pages}\n\n{listed}")


def write_rule_pages(app):
    """A page for each rule of `audit`, as its findings name it: what its docstring says."""
    folder = Path(app.confdir, "rules")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, rule in RULES.items():
        title = f"Rule {name}"
        (folder / f"{name}.rst").write_text(f"{title}\n{'=' * len(title)}\n\n{inspect.getdoc(rule)}\n", "utf-8")


def append_contents(app, docname, source):
    """Sphinx wants the list of all pages in the first one, and on its own the README has no use for it."""
    if docname == root_doc:
        listed = (f"{one.file[:2]} {one.question} <notebooks/{one.file}>" for one in overview.lessons(lessons.FOLDER))
        contents = Path(app.confdir, "contents.md").read_text("utf-8")
        source[0] += overview.filled(contents, {"lessons": "\n".join(listed)}).replace("<!-- lessons -->\n", "")


def place_network(app, docname, source):
    """The network that is frozen with a click, on a page of its own and on the first page. Others link to the first."""
    for folder, page in (("", "../docs/click.md"), ("notebooks/", "docs/click.md")):
        source[0] = source[0].replace(f"({folder}{click.PAGE.name})", f"({page})")
    if docname in (root_doc, "docs/click"):
        shown = f"```{{raw}} html\n{click.fragment(click.stored())}```\n"
        if docname == root_doc:
            shown = f"## A network you can freeze with a click\n\n{shown}\n"
            source[0] = source[0].replace("## Two commands", f"{shown}## Two commands", 1)
        else:
            source[0] += shown


def list_lessons(app, docname, source):
    """The start page has a marked place for the lessons. In a learner's copy it also says what they have done."""
    if docname == "notebooks/START":
        source[0] = overview.filled(source[0], {"lessons": overview.table(overview.lessons(lessons.FOLDER))})


def say_when_it_was_run(app, docname, source):
    """Below its title a lesson's page says when all outputs were last compared, and with which versions."""
    path = lessons.FOLDER.parent / f"{docname}.ipynb"
    if lessons.is_lesson(path) and path.exists():
        date, (oldest, *_, newest) = matrix.last_run()
        notebook = json.loads(source[0])
        told = f"\n\n*All lessons were verified on {date} or later on every version, torch {oldest} to {newest}.*"
        notebook["cells"][0]["source"] = ["".join(notebook["cells"][0]["source"]), told]
        source[0] = json.dumps(notebook)


def leave_answers_out_of_the_search(app, doctree):
    """Who looks for an error is to find the lesson that explains it, not the answer to an exercise on it."""
    docname = app.env.docname
    if docname.startswith("notebooks/solutions/") or docname in ("CONTRIBUTING", "CHANGELOG", "docs/exercises"):
        app.env.metadata[docname]["nosearch"] = True


def describe_pictures(app, doctree):
    """A picture's alternative text is the beginning of its words, which are folded below it. On a phone a wide one is
    moved sideways, not made too small to read."""
    for bundle in doctree.findall(nodes.container):
        if bundle.get("nb_element") == "mime_bundle":  # one output in several forms
            words = next((form.astext() for form in bundle if form["mime_type"] == "text/plain"), "")
            beginning = textwrap.shorten(" ".join(words.splitlines()[:2]), 120, placeholder=" ...")
            for picture in bundle.findall(nodes.image):
                picture["alt"] = f"{beginning} (in words below)"
                picture["classes"] += ["wide"] * (int(picture.get("width", 0)) > 540)


def name_start_page(app, error):
    """The folder's own address shows the README."""
    if not error:
        shutil.copy(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def setup(app):
    app.add_directive("audit-rules", AuditRules)
    app.connect("builder-inited", write_rule_pages)
    app.connect("source-read", append_contents)
    app.connect("source-read", place_network)
    app.connect("source-read", list_lessons)
    app.connect("source-read", say_when_it_was_run)
    app.connect("doctree-read", leave_answers_out_of_the_search)
    app.connect("doctree-read", describe_pictures)
    app.connect("build-finished", name_start_page)
