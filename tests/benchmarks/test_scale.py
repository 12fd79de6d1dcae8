"""The tables of what more processes cost: arithmetic on rows that are known; what is measured is not asked for."""

import csv

from benchmarks.scale import N_ENVS, N_STEPS, RECORD, SIZES, on_paper, table


def row(processes: int, batch_size: int, update: float, number: int = 0, *, meet: bool = True) -> dict[str, float]:
    measured = {"collect": 2.0, "update": update, "update_cpu": 1.0, "collectives": 100.0 * (processes > 1 and meet)}
    return (
        {"processes": processes, "meet": meet, "batch_size": batch_size, "round": number}
        | measured
        | dict.fromkeys(SIZES, 1.0)
    )


ROWS = [
    row(1, 1024, 2.0),
    row(2, 1024, 2.0, 0),
    row(2, 1024, 4.0, 1),
    row(2, 1024, 3.0, 2),
    row(2, 1024, 2.0, meet=False),
    row(1, 128, 2.0),
    row(2, 128, 8.0),
]


def test_table_has_medians_beside_one_process() -> None:
    """An update of the median round takes 1.5 times as long; two processes make twice the frames meanwhile."""
    _, _, *lines = table(ROWS, n_transitions=1000)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    apart = "2 that never meet"
    assert [line[:2] for line in cells] == [["128", "1"], ["128", "2"], ["1024", "1"], ["1024", apart], ["1024", "2"]]
    assert cells[4] == ["1024", "2", "2.00 s", "3.00 s", "1.50", "1.00 s", "400", "1.60", "100"]


def test_paper_counts_the_steps_of_rings_and_trees() -> None:
    """A sum of two processes has two steps, half a millisecond each here; a ring of eight has 14, a tree 6."""
    _, _, first, *_ = on_paper(ROWS)
    assert [cell.strip() for cell in first.strip("|").split("|")] == ["8", "0.70 s", "0.30 s", "0.70 s", "0.30 s"]


def test_page_quotes_the_record() -> None:
    """Every row of its tables is one that the record makes."""
    with RECORD.open() as file:
        rows = list(csv.DictReader(file))
    page = (RECORD.parents[2] / "docs" / "many_processes.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 8 and {*table(rows, N_ENVS * N_STEPS), *on_paper(rows)} <= {*page}
