"""The command line: what it prints, its exit codes, and that bad input never starts a pilot nor shows a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import CHECKOUT

from entk_app import cli


@pytest.fixture
def no_pilot(monkeypatch):
    import entk_app.pilot

    def refuse(*args):
        raise AssertionError("a pilot was started")

    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", refuse)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "vilin"], "there is no preset 'vilin'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--set", "stop.max_iterations=-1"], "stop.max_iterations = -1"),
        (["--set", "stop.max=1"], "there is no setting 'stop.max'"),
        (["--seed", "many"], "seed = 'many'"),
        (["--resource", "nowhere.node"], "resource.label = 'nowhere.node'"),
        (["--set", "system.name=protein"], "system.name = 'protein'"),
        (["--reference", "nowhere.pdb"], "nowhere.pdb"),
        (["--run-dir", "."], "not empty"),
        (["--set", "simulate.platform=HIP"], "simulate.platform = 'HIP'"),
    ],
)
def test_bad_input_is_exit_2_and_a_sentence(arguments, words, tmp_path, monkeypatch, capsys, no_pilot):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").write_text("")
    assert cli.main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["something"]  # nothing was made


def test_unknown_options_are_exit_2(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main_run(["--frobnicate"])
    assert caught.value.code == 2


def test_presets_templates_and_systems_are_listed(capsys):
    assert cli.main(["presets"]) == 0
    presets = capsys.readouterr().out
    assert all(name in presets for name in ("villin-quick", "fs-peptide-quick", "fs-peptide ", "bba "))
    assert cli.main(["template", "bba"]) == 0
    template = capsys.readouterr().out
    assert "friction_per_ps: 91.0  # " in template
    assert cli.main(["systems"]) == 0
    assert "EQYTAKYKGRTFRNEKELRDFIEKFKGR" in capsys.readouterr().out
    assert cli.main(["template", "nothing"]) == 2


def test_help_imports_no_heavy_library():
    script = (
        "import sys, entk_app.cli\n"
        "try:\n    entk_app.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'tensorflow', 'keras', 'openmm', 'radical', 'MDAnalysis', 'h5py', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "run a campaign" in finished.stdout


def test_a_campaign_that_fails_is_exit_1_with_a_summary(tmp_path, monkeypatch, capsys):
    import entk_app.pilot
    from entk_app.errors import CampaignFailed

    def fail(campaign, resource):
        campaign.end("failed", "the pilot died")
        raise CampaignFailed("the campaign failed: the pilot died")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", fail)
    assert cli.main_run([]) == 1
    assert "the pilot died" in capsys.readouterr().err
    assert '"stop_reason": "failed"' in (tmp_path / "runs" / "villin-quick-001" / "summary.json").read_text()


def test_what_may_surprise_is_said_before_the_start(tmp_path, monkeypatch, capsys):
    import entk_app.pilot

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", lambda campaign, resource: None)
    values = ["system.name=mine", "system.sequence=AAAAAA", "system.model=all-atom", "resource.cores=1000"]
    cli.main_run([part for value in values for part in ("--set", value)])
    printed = capsys.readouterr().out
    assert "note: no native structure" in printed
    assert "note: 1000 cores" in printed


def test_run_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "villin-quick-001").mkdir(parents=True)
    assert cli._choose_run_folder(None, "villin-quick").name == "villin-quick-002"
