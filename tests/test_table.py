"""The tables that commands print."""

from jaxcnn.table import print_line, print_table


def test_text_is_printed_as_it_is_but_controls_no_terminal(capsys):
    print_line("[bold]t\x1b", style="bold")
    print_table(["[name]", ">share"], [("[red]x[/red]", "0.5"), ("two\nlines", "0.25")])
    title, *lines = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert title == "[bold]t\N{REPLACEMENT CHARACTER}"
    header, _, *rows = filter(None, lines)
    assert [line.split() for line in (header, *rows)] == [
        ["[name]", "share"], ["[red]x[/red]", "0.5"], ["two\N{REPLACEMENT CHARACTER}lines", "0.25"],
    ]  # fmt: skip
    assert len({len(line) for line in (header, *rows)}) == 1


def test_empty_headers_and_empty_tables_are_not_printed(capsys):
    print_table(["name", ">share"], [])
    assert capsys.readouterr().out == ""
    print_table(["", ">"], [("cat", "0.5")])
    assert capsys.readouterr().out.split() == ["cat", "0.5"]


def test_in_a_narrow_terminal_a_long_name_is_whole_over_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "optim.learning_rate=0.0125,seed=3"
    print_table(["name", ">parameters", ">top-1"], [(name, "1,960,642", "0.5131")])
    header, _, first, *others = (
        line.split() for line in filter(None, map(str.strip, capsys.readouterr().out.split("\n")))
    )
    assert header == ["name", "parameters", "top-1"]
    assert first[1:] == ["1,960,642", "0.5131"]
    assert "".join(line[0] for line in (first, *others)) == name
