"""The command line: what it prints, its exit codes, and that bad input never starts a pilot nor shows a traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import CHECKOUT, prepare, tiny_settings

from entk_app import cli
from entk_app.records import write_lines


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
        (["--resource", "ornl.dgx3"], "did you mean 'ornl.dgx2'"),
        (["--resource", "slurm.cluster"], "resource.cores_per_node"),
        (["--resource", "local.dgx2_emulated", "--set", "resource.gpus=17"], "has 16 GPUs"),
        (["--resource", "local.dgx2_emulated", "--set", "resource.md_slots=17"], "has 16 slots"),
        (["--resource", "local.dgx2_emulated", "--submit"], "no schema for a batch system"),
        (["--resource-configs", "."], "no resource_<site>.json"),
        (["--budget-gpu-hours", "-1"], "stop.budget_gpu_hours = -1"),
        (["--resume", "nowhere"], "there is no run folder"),
        (["--set", "resource.environments.train=nowhere"], "no bin/python"),
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


def test_a_dry_run_tells_the_pilot_the_placement_and_the_commands_and_starts_nothing(
    tmp_path, monkeypatch, capsys, no_pilot
):
    monkeypatch.chdir(tmp_path)
    assert cli.main_run(["--resource", "ornl.dgx2", "--dry-run", "--preset", "bba"]) == 0
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "resource=ornl.dgx2, walltime=1440, cpus=96, gpus=16, access_schema=local" in lines
    for row in ("simulate 16 6 96 1", "simulate 12 6 72 1", "train 4 6 24 1", "analyse 1 96 96 1"):
        assert any(line.startswith(row) for line in lines), row
    for kind in ("simulate", "train", "analyse"):
        assert f"-m entk_app.tasks {kind} " in printed
    assert "unset PYTHONPATH" in printed and "OMP_NUM_THREADS=6" in printed
    assert list(tmp_path.iterdir()) == []


def test_resources_are_listed_and_shown(capsys):
    assert cli.main(["resources"]) == 0
    listed = capsys.readouterr().out
    for label in ("ornl.dgx2", "local.localhost", "local.dgx2_emulated", "slurm.cluster", "ornl.summit"):
        assert f"\n{label} " in listed
    assert cli.main(["resources", "ornl.dgx2"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown.split("\n", 1)[1])["gpus_per_node"] == 16
    assert cli.main(["resources", "ornl.dgx3"]) == 2
    assert "did you mean 'ornl.dgx2'" in capsys.readouterr().err


def test_finished_tells_whether_there_is_something_to_go_on_with(tmp_path, capsys):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    run = str(campaign.layout.root)
    assert cli.main(["finished", run]) == 1  # cut off before its first decision
    campaign.start()
    assert cli.main(["finished", run]) == 1
    for reason, code in (("walltime", 1), ("interrupted", 1), ("target_rmsd", 0), ("budget", 0), ("failed", 0)):
        stop = campaign.decisions[0].model_copy(update={"next": "stop", "stop_reason": reason, "actions": ()})
        write_lines(campaign.layout.decisions, [*campaign.decisions, stop])
        assert cli.main(["finished", run]) == code, reason
    assert cli.main(["finished", str(tmp_path)]) == 2
    assert "holds no campaign" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("simulate.temperature_k=310", "simulate.temperature_k = 310.0: the campaign in"),
        ("seed=2", "seed = 2"),
        ("system.model=all-atom", "system.model = 'all-atom'"),
    ],
)
def test_a_campaign_does_not_go_on_with_another_physics(tmp_path, capsys, no_pilot, assignment, words):
    campaign = prepare(tmp_path / "run", tiny_settings())
    assert cli.main_run(["--resume", str(campaign.layout.root), "--set", assignment]) == 2
    assert words in capsys.readouterr().err


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

    def fail(campaign, resource, lock):
        campaign.start()
        campaign.end("failed", "the pilot died")
        raise CampaignFailed("the campaign failed: the pilot died")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", fail)
    assert cli.main_run([]) == 1
    assert "the pilot died" in capsys.readouterr().err
    assert '"stop_reason": "failed"' in (tmp_path / "runs" / "villin-quick-001" / "summary.json").read_text()


def test_a_campaign_that_did_not_begin_leaves_no_summary(tmp_path, monkeypatch, capsys):
    import entk_app.pilot
    from entk_app.errors import RunFolderError

    def refuse(campaign, resource, lock):
        raise RunFolderError("it cannot go on")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", refuse)
    assert cli.main_run([]) == 2
    assert "it cannot go on" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/summary.json"))


def test_a_resumed_campaign_finds_its_resource_in_its_own_folder(tmp_path, monkeypatch, capsys):
    import entk_app.pilot

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", lambda campaign, resource, lock: campaign.start())
    entry = {"cores_per_node": 4, "fake_resources": True, "system_architecture": {"gpu": "emulated"}}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "resource_my.json").write_text(json.dumps({"node": entry}))
    options = ["--resource", "my.node", "--resource-configs", "mine", "--run-dir", "run"]
    assert cli.main_run(options) == 0
    (tmp_path / "mine" / "resource_my.json").unlink()
    assert cli.main_run(["--resume", "run"]) == 0
    assert "my.node: 4 cores" in capsys.readouterr().out


def test_what_may_surprise_is_said_before_the_start(tmp_path, monkeypatch, capsys):
    import entk_app.pilot

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", lambda campaign, resource, lock: None)
    values = ["system.name=mine", "system.sequence=AAAAAA", "system.model=all-atom", "resource.gpus=1"]
    cli.main_run(["--resource", "local.dgx2_emulated", *[part for value in values for part in ("--set", value)]])
    printed = capsys.readouterr().out
    assert "note: no native structure" in printed
    assert "note: local.dgx2_emulated is emulated" in printed


def test_run_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "villin-quick-001").mkdir(parents=True)
    assert cli._choose_run_folder(None, "villin-quick").name == "villin-quick-002"


def test_a_batch_script_is_printed_for_a_resource(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["job", "--resource", "local.localhost", "--walltime-min", "30", "--", "--seed", "7"]) == 0
    script = capsys.readouterr().out
    assert f"cd {tmp_path}\n" in script
    assert "#SBATCH --time=30\n" in script
    assert "how=(--resource local.localhost --seed 7 --run-dir" in script
    assert list(tmp_path.iterdir()) == []


def test_a_batch_script_speaks_the_language_of_its_resource(tmp_path, monkeypatch, capsys):
    # One of the resource files that RADICAL-Pilot ships: 42 cores a node under LSF, 6 GPUs.
    monkeypatch.chdir(tmp_path)
    assert cli.main(["job", "--resource", "ornl.summit", "--output", "job.sh", "--nodes", "2"]) == 0
    script = (tmp_path / "job.sh").read_text(encoding="utf-8")
    assert "#BSUB -n 84\n" in script
    assert '#BSUB -gpu "num=6"\n' in script
    assert "how=(--resource ornl.summit --set resource.nodes=2 --run-dir" in script
    assert f"< {tmp_path}/job.sh |" in script
    assert str(tmp_path / "job.sh") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resource", "local.localhost", "--scheduler", "pbs"], "--output"),
        (["--resource", "local.localhost", "--nodes", "2"], "local.localhost is one node"),
        (["--resource", "local.localhost", "--walltime-min", "1"], "walltime_min = 1"),
        (["--resource", "local.localhost", "--", "--set", "stop.max=1"], "there is no setting 'stop.max'"),
        (["--resource", "local.localhost", "--", "--run-dir", "x"], "--run-dir"),
        (["--resource", "nowhere.node"], "resource.label = 'nowhere.node'"),
        (["--resource", "local.localhost", "--output", "no/such/folder/job.sh"], "No such file"),
    ],
)
def test_a_batch_script_that_cannot_be_is_exit_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["job", *arguments]) == 2
    assert words in capsys.readouterr().err
