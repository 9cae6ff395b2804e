"""Nothing that a model or a file wrote becomes markup, wherever a template puts it."""

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from sparring.pipeline.report.html import page
from sparring.pipeline.report.html.axes import shape
from sparring.pipeline.report.html.charts import Chart
from sparring.pipeline.report.html.page import cut, one_line, templates


def written(source: str, **values: object) -> str:
    return templates().from_string(source).render(**values)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("<img src=x onerror=\"a('b')\">", "&lt;img src=x onerror=&#34;a(&#39;b&#39;)&#34;&gt;"),
        ("&lt; stays", "&amp;lt; stays"),
        ("\x1b[31mred\u202e\u2028", "\\x1b[31mred\\u202e\\u2028"),
    ],
)
def test_text_is_shown_and_never_read(text: str, shown: str) -> None:
    assert written("<p>{{ text }}</p>", text=text) == f"<p>{shown}</p>"
    assert written('<p title="{{ text }}"></p>', text=text) == f'<p title="{shown}"></p>'
    assert written("{{ text | cut(99) }}", text=text) == shown
    parts = templates().get_template("parts.html.jinja").module
    assert parts.list([text]) == f'<ul class="quiet"><li>{shown}</li></ul>'  # type: ignore[attr-defined]
    drawn = Chart(title=text, shapes=[shape("text", text, title=text)], legend=[(text, shape("g")), (text, shape("g"))])
    figure = parts.figure(drawn)  # type: ignore[attr-defined]
    assert figure.count(shown) == 6 and text not in figure


def test_markup_stays_and_what_is_put_together_by_hand_is_text_again() -> None:
    bold = Markup("<b>x</b>")
    assert written("{{ a }}{{ b }}", a=bold, b="<") == "<b>x</b>&lt;"
    assert written("{{ a }}", a=f"{bold!s}") == "&lt;b&gt;x&lt;/b&gt;"
    assert written("{{ a }}", a=bold + "<i>") == "<b>x</b>&lt;i&gt;"


def test_a_name_that_is_not_there_is_no_empty_text() -> None:
    with pytest.raises(UndefinedError):
        written("{{ gone }}")


def test_a_table_names_its_rows_and_scrolls_in_a_box() -> None:
    made = templates().get_template("parts.html.jinja").module.table(("", "a"), [["<r>", "1"]])  # type: ignore[attr-defined]
    assert made.startswith('<div class="wide" tabindex="0" role="region"')
    assert '<th scope="row">&lt;r&gt;</th><td>1</td>' in made


def test_long_texts_are_cut() -> None:
    assert cut("abcd", 4) == "abcd" and cut("abcdef", 4) == "abcd … (2 more characters)"
    assert one_line("a \n b", 9) == "a b" and one_line("abc def", 5) == "abc d …"


def test_every_template_escapes() -> None:
    """No template marks a text as safe: only style, script and what templates have written are markup."""
    for path in (page.FOLDER / "templates").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "safe" not in text and "autoescape" not in text, path
