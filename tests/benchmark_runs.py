"""Quick runs of perfconv bench, for the tests of it."""

from pathlib import Path

from perfconv._bench import suite
from perfconv._bench.command import main
from perfconv._bench.results_file import read


def run(tmp_path: Path, *words: str, continues: bool = True) -> tuple[dict, list[dict]]:
    """The results file of a quick run, which a second run leaves as it is."""
    output = tmp_path / "results.jsonl"
    arguments = [*words, "--threads", "1", "--pairs", "5", "--output", str(output)]
    assert main(arguments) == 0
    head, rows = read(output)
    if continues:
        assert main(arguments) == 0
        assert read(output) == (head, rows)
    assert head["isa"]
    assert head["threads"] == 1
    for row in rows:
        assert row["benchmark"] in suite.NAMES
        assert row["level"] in suite.LEVELS
        if "speed_up" in row:
            assert row["speed_up_low"] <= row["speed_up"] <= row["speed_up_high"]
            assert row["candidate_ms"] > 0
    return head, rows
