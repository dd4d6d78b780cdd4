import json

from nanobanana_pipeline.lineage.trace.graph import (
    LineageGraph,
    Link,
    Node,
    NodeKind,
    as_dot,
    as_json,
    as_mermaid,
)

HOSTILE = 'a "quoted" \\ [b]row[/b]\n<script>; end'


def hostile() -> LineageGraph:
    row = Node(NodeKind.PROMPT_ROW, "set/1", {"prompt": HOSTILE})
    image = Node(NodeKind.IMAGE, "ab" * 32, {"bytes": 3})
    link = Link(row.id, image.id, {"note": HOSTILE})
    return LineageGraph("x", (image.id,), {n.id: n for n in (row, image)}, (link,), ("mind",))


def test_json_tells_all_to_the_letter() -> None:
    told = json.loads(as_json(hostile()))
    assert told["nodes"][0]["prompt"] == HOSTILE
    assert told["links"] == [
        {"from": "prompt row:set/1", "to": f"image:{'ab' * 32}", "note": HOSTILE}
    ]
    assert (told["asked"], told["notes"]) == ("x", ["mind"])


def test_texts_of_others_do_not_break_out_of_their_labels() -> None:
    dot = as_dot(hostile()).splitlines()
    assert dot[2] == (
        r'  n0 [label="prompt row\nset/1\na \"quoted\" \\ [b]row[/b] <script>; end"];'
    )
    assert dot[4] == r'  n0 -> n1 [label="note a \"quoted\" \\ [b]row[/b] <script>; end"];'
    mermaid = as_mermaid(hostile()).splitlines()
    assert mermaid[1].count('"') == 2
    assert "<script" not in mermaid[1]
    assert mermaid[3].count('"') == 2
    assert mermaid[4] == "  style n1 stroke-width:3px"
