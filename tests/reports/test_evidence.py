"""The results that the ledger of claims finds."""

import json

from fastvim.reports.evidence import collect_results


def test_results_behind_a_link_are_found(tmp_path):
    (tmp_path / "scratch").mkdir()
    content = {"experiment": "moved", "variants": []}
    (tmp_path / "scratch/results.json").write_text(json.dumps(content))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/moved").symlink_to(tmp_path / "scratch")
    assert collect_results(tmp_path / "results") == ([content], [])
