"""YAML becomes a tree with lines, hostile YAML an error and not a burden, and variables never become structure."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import yaml_tree
from proxy.config.yaml_tree import ListNode, MapNode, Node, ScalarNode, YamlError, compose, escape, expand


def plain(node: Node | None) -> object:
    """The tree as Python values, every scalar a text."""
    if isinstance(node, ListNode):
        return [plain(item) for item in node.items]
    if isinstance(node, MapNode):
        return {str(plain(key)): plain(value) for key, value in node.items}
    return None if node is None else node.text


values = st.recursive(
    st.text(st.characters(exclude_categories=["C"]), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(value=values, flow=st.booleans())
def test_tree_is_what_was_written(value: object, flow: bool) -> None:
    assert plain(compose(yaml.safe_dump(value, default_flow_style=flow))) == value


def test_lines_count_from_one_and_aliases_share() -> None:
    root = compose("a: &x [1,\n  two]\nb: *x\n")
    assert isinstance(root, MapNode)
    (_, first), (key, second) = root.items
    assert isinstance(first, ListNode)
    assert [item.line for item in first.items] == [1, 2]
    assert key.line == 3
    assert second is first


def test_quoted_text_is_not_plain() -> None:
    root = compose("[8080, '8080', \"8080\", !!str 8080]")
    assert isinstance(root, ListNode)
    assert [item.plain for item in root.items if isinstance(item, ScalarNode)] == [True, False, False, False]


def test_empty_text_has_no_tree() -> None:
    assert compose("# nothing\n") is None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [1,\n", 3, "is not YAML"),
        ("a: 1\n\tb: 2\n", 2, "is not YAML"),
        ("a: b: c", 1, "is not YAML"),
        ("a: 1\nb: 'x\n", 3, "is not YAML"),
        ("a: 1\nb: \x01\n", 2, "control character"),
        ("é: 1\n\nb: \x01\n", 3, "control character"),
        ("a: 1\n--- \nb: 1\n", 2, "second document"),
        ("a: 1\nb: *c\n", 2, r"uses \*c"),
        ("a: &a [*a]\n", 1, r"uses \*a"),
        ("a: !!python/object:os.system x\n", 1, "uses the tag"),
        ("a: !env x\n", 1, "uses the tag"),
        ("a: !!set {x}\n", 1, "uses the tag"),
        ("[" * 100_000, 1, "32 levels deep"),
        ("- " * 100_000, 1, "32 levels deep"),
    ],
)
def test_what_is_refused(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlError, match=message) as caught:
        compose(text)
    assert caught.value.line == line


def test_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "MAX_NODES", 100)
    assert compose("[" + "a," * 99 + "]") is not None
    with pytest.raises(YamlError, match="more than 100 values"):
        compose("[" + "a," * 100 + "]")


ENVIRON = {"A": "one", "B": "two", "EMPTY": "", "NESTED": "${A}"}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${A}", "one"),
        ("x${A}y${B}z", "xoneytwoz"),
        ("${NO:-default}", "default"),
        ("${NO:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-default}", "default"),
        ("${A:-default}", "one"),
        ("${NO:-https://h:1/-:-x}", "https://h:1/-:-x"),
        ("${NESTED}", "${A}"),
        ("$${A}", "${A}"),
        ("$A $$ $", "$A $$ $"),
    ],
)
def test_variables(text: str, expanded: str) -> None:
    assert expand(text, ENVIRON) == expanded


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A", "${A-b}", "${A B}", "${${A}}"])
def test_malformed_variables(text: str) -> None:
    with pytest.raises(ValueError, match=r"starts no \$\{NAME\}"):
        expand(text, ENVIRON)


def test_missing_variable_is_named() -> None:
    with pytest.raises(ValueError, match="environment variable MISSING, which is not set"):
        expand("a${MISSING}", ENVIRON)


@given(st.text("${}A:-x", max_size=30))
def test_escaped_text_survives(text: str) -> None:
    assert expand(escape(text), ENVIRON) == text
