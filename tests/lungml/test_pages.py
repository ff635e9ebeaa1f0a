"""What a browser or a Markdown reader gets, asked of a strict parser."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest

from lungml.pages import Beside, Figures, Gallery, Image, Items, Page, Part, Sheet, Words, to_html, to_markdown

VOID = {"meta", "img", "br", "hr", "link"}
NASTY = '<script>alert("1")</script> & | `x` [y](http://z) *w*\n# v'


class Strict(HTMLParser):
    """Fails on a tag that is closed by another; keeps tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), tag
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def parsed(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def page(text: str = "words") -> Page:
    return Page(
        title=text,
        opening=[Words(text=text, kind="warning"), Figures(figures=[(text, text, text), (text, "1", "")])],
        parts=[
            Part(
                heading="First part",
                blocks=[
                    Words(text=text),
                    Items(texts=[text, text]),
                    Sheet(caption=text, head=["", text], rows=[[text, "1"], [text, text]]),
                    Beside(
                        columns=[
                            [Gallery(images=[Image(png=b"\x89PNG", alt=text)])],
                            [Sheet(caption="c", head=["", ""], rows=[["a", "b"]])],
                        ]
                    ),
                ],
            ),
            Part(
                heading="Second, part", blocks=[Gallery(images=[Image(png=b"1", alt=text, caption=text)], kind="scans")]
            ),
        ],
    )


def test_the_html_is_well_formed_and_shows_every_text_as_it_is() -> None:
    nasty = parsed(to_html(page(NASTY)))
    plain = parsed(to_html(page("words")))
    # The same tags whatever the texts hold: none of them became markup.
    assert [tag for tag, _ in nasty.tags] == [tag for tag, _ in plain.tags]
    assert nasty.text.count(NASTY) == plain.text.count("words")
    assert "script" not in {tag for tag, _ in nasty.tags}


def test_the_html_asks_nothing_of_a_network_and_runs_nothing() -> None:
    tags = parsed(to_html(page())).tags
    assert {attrs["src"].partition(",")[0] for tag, attrs in tags if tag == "img"} == {"data:image/png;base64"}  # type: ignore[union-attr]
    assert [base64.b64decode((a["src"] or "").partition(",")[2]) for t, a in tags if t == "img"] == [b"\x89PNG", b"1"]
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "form"}
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert any("default-src 'none'" in (attrs.get("content") or "") for tag, attrs in tags if tag == "meta")


def test_headings_tables_and_pictures_can_be_heard() -> None:
    tags = parsed(to_html(page())).tags
    assert [tag for tag, _ in tags if tag in ("h1", "h2", "h3")] == ["h1", "h2", "h2"]
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    assert {attrs.get("scope") for tag, attrs in tags if tag == "th"} == {"col", "row"}
    assert sum(tag == "caption" for tag, _ in tags) == sum(tag == "table" for tag, _ in tags) == 2
    assert sum(tag == "thead" for tag, _ in tags) == 1  # a head without a word is none
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    links = [(attrs["href"] or "").removeprefix("#") for tag, attrs in tags if tag == "a"]
    assert ids == links == ["first-part", "second-part"]
    assert [attrs.get("lang") for tag, attrs in tags if tag == "html"] == ["en"]


def test_the_markdown_says_the_same_without_pictures() -> None:
    assert to_markdown(page()) == (
        "# words\n\n> **words**\n\n- words: **words**, words\n- words: **1**\n\n"
        "## First part\n\nwords\n\n- words\n- words\n\n"
        "words:\n\n|  | words |\n| --- | ---: |\n| words | 1 |\n| words | words |\n\n"
        "c:\n\n|  |  |\n| --- | ---: |\n| a | b |\n\n"
        "## Second, part\n\n- words\n"
    )


def test_markdown_shows_every_text_as_it_is() -> None:
    text = to_markdown(page(NASTY))
    said = '\\<script\\>alert("1")\\</script\\> & \\| \\`x\\` \\[y\\](http://z) \\*w\\* # v'
    assert text.splitlines()[0] == f"# {said}"
    assert text.count(said) == to_markdown(page()).count("words")
    assert len(text.splitlines()) == len(to_markdown(page()).splitlines())


def test_columns_of_words_are_on_the_left() -> None:
    sheet = Sheet(caption="c", head=["a", "b", "n"], rows=[["x", "y", "1"]], words=frozenset({1}))
    only = Page(title="t", opening=[sheet], parts=[])
    assert "| --- | --- | ---: |" in to_markdown(only)
    assert '<td class="words">y</td><td>1</td>' in to_html(only)


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="c: a row of 1 cells under 2 columns"):
        Sheet(caption="c", head=["a", "b"], rows=[["x", "1"], ["y"]])
