"""Settings: layers, what is refused and how it is said, templates that read back."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from entk_app.errors import SettingsError
from entk_app.settings import (
    Settings,
    build_settings,
    dump_yaml,
    known_keys,
    preset_names,
    read_config,
    read_preset,
    render_template,
)

MINIMAL = {"simulate": {"segment_ns": 1.0}}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_its_template_reads_back_equal(name, tmp_path):
    settings = build_settings(read_preset(name)[1])
    path = tmp_path / "campaign.yaml"
    path.write_text(render_template(name), encoding="utf-8")
    assert build_settings(read_config(path)) == settings
    assert all(f"{key.split('.')[-1]}:" in path.read_text() for key in known_keys())
    path.write_text(dump_yaml(settings), encoding="utf-8")
    assert build_settings(read_config(path)) == settings


def test_the_presets_that_the_readme_names_are_there():
    assert {"villin-quick", "fs-peptide-quick", "fs-peptide", "bba"} <= set(preset_names())


def test_later_layers_win_and_assignments_last():
    settings = build_settings(
        MINIMAL, {"seed": 4, "stop": {"max_iterations": 7}}, assignments=["stop.max_iterations=9"]
    )
    assert (settings.seed, settings.stop.max_iterations) == (4, 9)


def test_one_way_to_say_the_segment_length_clears_the_other():
    settings = build_settings(MINIMAL, assignments=["simulate.segment_minutes=5"])
    assert (settings.simulate.segment_ns, settings.simulate.segment_minutes) == (None, 5.0)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["stop.max_iteratons=3"], ["stop.max_iteratons", "did you mean 'stop.max_iterations'"]),
        (["stop.max_iterations=0"], ["stop.max_iterations = 0", "greater than or equal to 1"]),
        (["stop.max_iterations=many"], ["stop.max_iterations = 'many'", "integer"]),
        (["system.model=all_atom"], ["system.model = 'all_atom'", "all-atom", "calpha"]),
        (["analyse.models=best_one"], ["analyse.models", "best_one"]),
        (["analyse.models=9"], ["analyse.models = 9", "train.latent_dims"]),
        (["train.latent_dims=[3,3]"], ["train.latent_dims", "once"]),
        (["simulate.report_interval_ps=0.003"], ["0.003", "whole number of steps"]),
        (["simulate.segment_ns=0.01"], ["simulate.segment_ns = 0.01", "shorter than one"]),
        (["simulate.segment_ns=1", "simulate.segment_minutes=5", "simulate.segment_ns=1"], None),
        (["steering.window=20000"], ["steering.window = 20000", "steering.min_frames"]),
        (["simulate.temperature_k=.inf"], ["simulate.temperature_k", "finite"]),
        (["simulate.report_interval_ps=1e306"], ["simulate.report_interval_ps", "less than or equal"]),
        (["simulate.segment_ns=1e306"], ["simulate.segment_ns", "less than or equal"]),
        (["seed"], ["key=value"]),
        (["seed=[1"], ["not valid YAML"]),
        (["resource.label=localhost"], ["resource.label = 'localhost'", "<site>.<key>"]),
        (["train.latent_dims=3"], ["train.latent_dims = 3", "give a list"]),
    ],
)
def test_a_bad_setting_names_the_key_the_value_and_what_is_allowed(assignments, words):
    if words is None:
        assert build_settings(MINIMAL, assignments=assignments).simulate.segment_ns == 1.0
        return
    with pytest.raises(SettingsError) as caught:
        build_settings(MINIMAL, assignments=assignments)
    for word in words:
        assert word in str(caught.value)


def test_neither_length_of_a_segment_is_an_error():
    with pytest.raises(SettingsError, match="give exactly one"):
        build_settings({})


def test_a_misspelt_group_names_the_near_one():
    with pytest.raises(SettingsError, match="simulation: there is no such setting; did you mean 'simulate'"):
        build_settings({"simulate": {"segment_ns": 1}, "simulation": {"friction_per_ps": 3}})


def test_a_pdb_and_a_sequence_contradict_one_another():
    with pytest.raises(SettingsError, match="not both"):
        build_settings(MINIMAL, assignments=["system.name=x", "system.pdb=a.pdb", "system.sequence=AAAA"])


def test_a_misspelt_key_of_a_file_names_the_near_one():
    with pytest.raises(SettingsError, match=r"simulate\.frictoin_per_ps.*did you mean 'simulate\.friction_per_ps'"):
        build_settings({"simulate": {"segment_ns": 1, "frictoin_per_ps": 3}})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"- 1\n- 2\n", "groups of settings"),
        (b"just words", "groups of settings"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=words):
        build_settings(read_config(path))


def test_a_missing_file_and_a_missing_preset_are_named():
    with pytest.raises(SettingsError, match="nowhere.yaml"):
        from pathlib import Path

        read_config(Path("nowhere.yaml"))
    with pytest.raises(SettingsError, match="did you mean 'villin-quick'"):
        read_preset("vilin-quick")


def test_an_empty_file_leaves_the_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert build_settings(MINIMAL, read_config(path)) == build_settings(MINIMAL)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*Settings.model_fields, "name", "model", "epochs", "label", "segment_ns"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_yaml_is_settings_or_a_settings_error(value):
    parsed = yaml.safe_load(yaml.safe_dump(value))
    try:
        built = build_settings(MINIMAL, parsed)
    except SettingsError as error:
        assert str(error)
    else:
        assert isinstance(built, Settings)


def test_settings_are_frozen():
    settings = build_settings(MINIMAL)
    with pytest.raises(Exception, match="frozen"):
        settings.seed = 2


def test_frames_of_a_segment():
    settings = build_settings({"simulate": {"segment_ns": 0.15, "report_interval_ps": 0.5, "time_step_fs": 4}})
    assert (settings.steps_per_frame, settings.frames_per_segment) == (125, 300)


#: The paper's protocol (Ma et al. 2019, section 2), line by line.
PAPER = {
    "fs-peptide": {
        "simulate": {
            "segment_minutes": 5.0, "report_interval_ps": 50.0, "time_step_fs": 2.0, "hydrogen_mass_amu": None,
            "temperature_k": 300.0, "friction_per_ps": 91.0, "cutoff_angstrom": 10.0, "contact_cutoff_angstrom": 8.0,
            "minimise_tolerance_kj_per_mol_nm": 10.0, "minimise_max_iterations": 100,
        },
        "train": {"latent_dims": (3, 4, 5, 6), "architecture": "paper", "epochs": 100, "patience": None},
        "analyse": {"models": "all"},
        "steering": {"initial_frames": 100_000, "min_frames": 20_000, "window": 5_000},
        "stop": {"max_iterations": 90},
        "resource": {"md_slots": 12, "ml_slots": 4},
    },
    "bba": {
        "simulate": {"segment_minutes": 5.0, "report_interval_ps": 50.0, "time_step_fs": 2.0, "friction_per_ps": 91.0},
        "analyse": {"models": 6},
        "steering": {"initial_frames": 100_000, "min_frames": 10_000, "window": 5_000},
        "stop": {"max_iterations": 100},
        "resource": {"md_slots": 12, "ml_slots": 4},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_presets_of_the_paper_have_its_settings(name):
    settings = build_settings(read_preset(name)[1])
    for group, values in PAPER[name].items():
        for key, value in values.items():
            assert getattr(getattr(settings, group), key) == value, f"{group}.{key}"
