"""Nothing that a model wrote becomes markup."""

import pytest

from sparring.pipeline.report.html.markup import Html, join, safe, table, tag


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("<img src=x onerror=\"a('b')\">", "&lt;img src=x onerror=&quot;a(&#x27;b&#x27;)&quot;&gt;"),
        ("&lt; stays", "&amp;lt; stays"),
        ("\x1b[31mred\u202e\u2028", "\\x1b[31mred\\u202e\\u2028"),
    ],
)
def test_text_is_shown_and_never_read(text: str, shown: str) -> None:
    assert safe(text) == shown
    assert tag("p", text) == f"<p>{shown}</p>"
    assert tag("p", title=text) == f'<p title="{shown}"></p>'


def test_markup_stays_and_what_is_put_together_by_hand_is_text_again() -> None:
    bold = tag("b", "x")
    assert tag("p", bold, "<") == "<p><b>x</b>&lt;</p>"
    assert tag("p", f"{bold}") == "<p>&lt;b&gt;x&lt;/b&gt;</p>"
    assert tag("p", bold + "<i>") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;i&gt;</p>"
    assert isinstance(join(["a", bold]), Html)


def test_attributes() -> None:
    assert tag("i", class_="a", data_x=2, hidden=True, open=False, title=None) == '<i class="a" data-x="2" hidden></i>'
    assert tag("rect", x=1.5, y=2.0, width=0.333) == '<rect x="1.5" y="2" width="0.33"></rect>'
    assert tag("input", type="search") == '<input type="search">'


def test_a_table_names_its_rows_and_scrolls_in_a_box() -> None:
    made = table(("", "a"), [["<r>", "1"]])
    assert made.startswith('<div class="wide"') and '<th scope="row">&lt;r&gt;</th><td>1</td>' in made
