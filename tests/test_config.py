import dataclasses
import re
import shlex
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from deflow_vision.agents import AGENTS
from deflow_vision.config import (
    ConfigError,
    DataConfig,
    EvalConfig,
    TrainConfig,
    compose,
    default_run_dir,
    from_yaml,
    load,
    resolve_mixed_precision,
    to_yaml,
)
from deflow_vision.tasks import configs_root, offline_tasks, offline_to_online_tasks
from deflow_vision.types import UserError

# DeFlow's published settings, written down here a second time: name of the task without its goal,
# (target_divergence, discount, q_agg, offline_steps).
PUBLISHED = {
    "antmaze-large-navigate": (0.01, 0.99, "min", 1_000_000),
    "antmaze-giant-navigate": (0.01, 0.995, "min", 1_000_000),
    "humanoidmaze-medium-navigate": (0.001, 0.995, "mean", 1_000_000),
    "humanoidmaze-large-navigate": (0.001, 0.995, "mean", 1_000_000),
    "antsoccer-arena-navigate": (0.01, 0.995, "mean", 1_000_000),
    "cube-single-play": (0.001, 0.99, "mean", 1_000_000),
    "cube-double-play": (0.001, 0.99, "mean", 1_000_000),
    "scene-play": (0.001, 0.99, "mean", 1_000_000),
    "puzzle-3x3-play": (0.005, 0.99, "mean", 1_000_000),
    "puzzle-4x4-play": (0.005, 0.99, "mean", 1_000_000),
    "visual-cube-single-play": (0.001, 0.99, "mean", 500_000),
    "visual-cube-double-play": (0.001, 0.99, "mean", 500_000),
    "visual-scene-play": (0.001, 0.99, "mean", 500_000),
    "visual-puzzle-3x3-play": (0.0005, 0.99, "mean", 500_000),
    "visual-puzzle-4x4-play": (0.0005, 0.99, "mean", 500_000),
    "antmaze-umaze-v2": (0.015, 0.99, "mean", 500_000),
    "antmaze-umaze-diverse-v2": (0.015, 0.99, "mean", 500_000),
    "antmaze-medium-play-v2": (0.015, 0.99, "mean", 500_000),
    "antmaze-medium-diverse-v2": (0.015, 0.99, "mean", 500_000),
    "antmaze-large-play-v2": (0.015, 0.99, "mean", 500_000),
    "antmaze-large-diverse-v2": (0.015, 0.99, "mean", 500_000),
    "pen-human-v1": (0.01, 0.99, "min", 500_000),
    "pen-cloned-v1": (0.01, 0.99, "min", 500_000),
    "pen-expert-v1": (0.01, 0.99, "min", 500_000),
    "door-human-v1": (0.001, 0.99, "min", 500_000),
    "door-cloned-v1": (0.001, 0.99, "min", 500_000),
    "door-expert-v1": (0.001, 0.99, "min", 500_000),
    "hammer-human-v1": (0.001, 0.99, "min", 500_000),
    "hammer-cloned-v1": (0.001, 0.99, "min", 500_000),
    "hammer-expert-v1": (0.001, 0.99, "min", 500_000),
    "relocate-human-v1": (0.001, 0.99, "min", 500_000),
    "relocate-cloned-v1": (0.001, 0.99, "min", 500_000),
    "relocate-expert-v1": (0.001, 0.99, "min", 500_000),
}
LONGER = {"idql", "srpo"}
"""Algorithms whose published protocol has more updates than the others'."""
BOMB = "".join(
    [f"a: &a {list(range(9))}\n"]
    + [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijklmn")]
)
"""Some hundred bytes that stand for 10^13 values."""

OFFLINE = [task.name for task in offline_tasks()]
OFFLINE_TO_ONLINE = [task.name for task in offline_to_online_tasks()]


def published(task: str) -> tuple[float, float, str, int]:
    return PUBLISHED[re.sub(r"-task\d$", "", task)]


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed for a command line that is refused, as one line of words."""
    with pytest.raises(SystemExit) as refused:
        load(argv)
    assert refused.value.code == 2
    printed = capsys.readouterr()
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed.out + printed.err).split())


@pytest.fixture
def layer(tmp_path):
    """Write a YAML file of settings and give its path."""

    def write(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def run(tmp_path):
    """A run folder, as the loop leaves it."""
    config = load(["--task", "cube-double-play", "--seed", "3"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    return tmp_path


@pytest.mark.parametrize("task", OFFLINE)
def test_every_offline_task_takes_its_published_deflow_settings(task):
    config = compose(task)
    agent = config.agent
    found = (agent.target_divergence, agent.discount, agent.q_agg, config.offline_steps)
    assert found == published(task)
    assert (config.batch_size, agent.lr, agent.tau, agent.flow_steps) == (256, 3e-4, 0.005, 10)
    assert (agent.normalize_q_loss, agent.use_lagrange, agent.initial_log_alpha) == (True, True, 1)
    assert (config.online_steps, config.eval.every, config.eval.episodes) == (0, 100_000, 50)


@pytest.mark.parametrize("task", OFFLINE_TO_ONLINE)
def test_every_offline_to_online_task_takes_its_published_deflow_settings(task):
    config = compose(task, preset="offline-to-online")
    agent = config.agent
    assert (agent.target_divergence, agent.discount, agent.q_agg) == published(task)[:3]
    assert (config.offline_steps, config.online_steps) == (1_000_000, 1_000_000)


def test_online_steps_alone_keep_the_offline_length_of_the_task():
    config = load(["--task", "antmaze-umaze-v2", "--online-steps", "1000000"])
    assert (config.offline_steps, config.online_steps) == (500_000, 1_000_000)


ONLINE = {
    "fql": {
        "humanoidmaze-medium-navigate": ("alpha", 30.0, 100.0),
        "antsoccer-arena-navigate": ("alpha", 10.0, 30.0),
        "cube-double-play": ("alpha", 300.0, 300.0),
        "puzzle-4x4-play": ("alpha", 1000.0, 1000.0),
        "antmaze-large-play-v2": ("alpha", 3.0, 3.0),
        "pen-cloned-v1": ("alpha", 10_000.0, 1000.0),
        "door-cloned-v1": ("alpha", 30_000.0, 1000.0),
        "hammer-cloned-v1": ("alpha", 10_000.0, 1000.0),
        "relocate-cloned-v1": ("alpha", 30_000.0, 10_000.0),
        "relocate-expert-v1": ("alpha", 30_000.0, 30_000.0),
    },
    "ifql": {
        "antsoccer-arena-navigate": ("num_candidates", 64, 64),
        "antmaze-umaze-v2": ("num_candidates", 32, 32),
        "pen-cloned-v1": ("num_candidates", 32, 128),
        "door-cloned-v1": ("num_candidates", 128, 128),
        "hammer-cloned-v1": ("num_candidates", 32, 128),
        "relocate-cloned-v1": ("num_candidates", 32, 128),
    },
    "floq": {
        "humanoidmaze-large-navigate": ("critic_flow_steps", 8, 16),
        "antsoccer-arena-navigate": ("alpha", 10.0, 30.0),
    },
}
"""Settings of an agent in offline and in offline-to-online runs, arXiv 2502.02538 and READMEs."""


@pytest.mark.parametrize(("algo", "task"), [(a, t) for a, rows in ONLINE.items() for t in rows])
def test_offline_to_online_runs_have_their_own_settings_where_the_papers_do(algo, task):
    name, offline, online = ONLINE[algo][task]
    assert getattr(compose(task, algo).agent, name) == offline
    assert getattr(compose(task, algo, preset="offline-to-online").agent, name) == online


def test_flags_and_files_win_over_the_settings_of_a_preset(layer):
    argv = ["--task", "pen-cloned-v1", "--algo", "fql", "--preset", "offline-to-online"]
    assert load([*argv, "--config", layer("agent: {alpha: 7.0}")]).agent.alpha == 7
    assert load([*argv, "--agent.alpha", "8"]).agent.alpha == 8


@pytest.mark.parametrize("task", OFFLINE_TO_ONLINE)
def test_what_has_no_offline_phase_has_none_in_the_offline_to_online_protocol(task):
    config = compose(task, "rlpd", preset="offline-to-online")
    assert (config.offline_steps, config.online_steps) == (0, 1_000_000)
    assert config.online.sampling == "balanced"


def test_what_has_no_offline_phase_has_none_in_an_environment_of_ones_own():
    config = compose("walk", "rlpd", env="my_walk:make")
    assert (config.offline_steps, config.online.sampling) == (0, "balanced")


def test_a_pixel_task_takes_the_published_encoder_augmentation_and_frame_stack():
    config = load(["--task", "visual-scene-play"])
    assert config.encoder.name == "impala_small"
    assert (config.data.frame_stack, config.data.augment.probability) == (3, 0.5)
    assert load(["--task", "scene-play"]).data.frame_stack == 1


@pytest.mark.parametrize("algo", AGENTS)
def test_every_task_resolves_for_every_algorithm(algo):
    rows = yaml.safe_load((configs_root() / "agents" / f"{algo}.yaml").read_text())["rows"]
    assert {task.family for task in offline_tasks()} <= rows.keys()
    for task in OFFLINE:
        config = compose(task, algo)
        assert isinstance(config.agent, AGENTS[algo].Config)
        offline_steps = published(task)[3] if AGENTS[algo].offline else 0
        assert config.offline_steps == offline_steps or algo in LONGER
        if hasattr(config.agent, "discount"):
            assert config.agent.discount == published(task)[1]


@pytest.mark.parametrize("algo", AGENTS)
def test_the_debug_preset_is_short_for_every_algorithm(algo):
    config = compose("cube-single-play", algo, preset="debug")
    assert (config.offline_steps, config.agent.hidden_dims) == (6, (16, 16))


def test_a_short_name_becomes_the_canonical_one_and_finds_its_store(monkeypatch):
    monkeypatch.setenv("DEFLOW_DATA", "/stores")
    config = load(["--task", "visual-cube-double-play"])
    assert config.task == "visual-cube-double-play-task1"
    assert config.data.path == "/stores/visual-cube-double-play-v0.zarr"


def test_an_address_of_a_store_survives_flags_and_files(tmp_path):
    address = "s3://bucket/data/{dataset}.zarr"
    config = load(["--task", "cube-double-play", "--data.path", address])
    assert config.data.path == "s3://bucket/data/cube-double-play-v0.zarr"
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml") == config


def test_a_negative_cache_is_refused(capsys):
    with pytest.raises(SystemExit):
        load(["--task", "cube-double-play", "--data.cache-gib", "-1"])
    assert "data.cache_gib is -1.0, must be at least 0" in capsys.readouterr().err


def test_later_layers_win_over_earlier_ones(layer):
    first = layer("{seed: 1, batch_size: 8, log: {every: 2}, agent: {target_divergence: 2e-3}}")
    second = layer("{batch_size: 16, log: {every: 3}}", "second.yaml")
    argv = ["--task", "puzzle-3x3-play", "--preset", "demo-state", "--config", first, second]
    config = load([*argv, "--log.every", "4"])
    assert (config.seed, config.batch_size, config.log.every) == (1, 16, 4)
    assert config.agent.target_divergence == 2e-3
    assert config.checkpoint.every == 5000


def test_flags_reach_the_agent_and_the_encoder():
    config = load(
        shlex.split(
            "--task visual-scene-play --agent.target-divergence 5e-4 --seed 1 --encoder.sharing "
            "separate --agent.hidden-dims 8 9 --data.augment.kornia grayscale "
            "--agent.no-normalize-q-loss"
        )
    )
    assert (config.agent.target_divergence, config.seed) == (5e-4, 1)
    assert (config.encoder.sharing, config.agent.hidden_dims) == ("separate", (8, 9))
    assert (config.data.augment.kornia, config.agent.normalize_q_loss) == (("grayscale",), False)


def test_the_target_divergence_may_be_left_to_the_data(layer):
    task = ["--task", "scene-play"]
    from_file = ["--config", layer("agent: {target_divergence: auto}")]
    for argv in (["--agent.target-divergence", "auto"], from_file):
        config = load([*task, *argv])
        assert config.agent.target_divergence == "auto"
        assert "target_divergence: auto\n" in to_yaml(config)


def test_a_config_file_may_name_the_task_and_a_flag_overrides_it(layer):
    path = layer("{task: scene-play, seed: 4}")
    assert compose(files=[Path(path)]).task == "scene-play-task2"
    assert load(["--config", path, "--task", "cube-single-play"]).task == "cube-single-play-task2"


def test_words_and_numbers_in_yaml_mean_what_they_look_like(layer):
    path = layer("{mixed_precision: no, log: {wandb: off}, agent: {lr: 1e-4, alpha: 3}}")
    config = load(["--task", "scene-play", "--config", path])
    assert (config.mixed_precision, config.log.wandb) == ("no", "off")
    assert (config.agent.lr, config.agent.alpha) == (1e-4, 3.0)
    assert isinstance(config.agent.alpha, float)


@pytest.mark.parametrize("preset", ["demo", "demo-state", "debug", "offline-to-online"])
def test_every_preset_composes_with_state_and_pixels(preset):
    for task in ("cube-single-play", "visual-cube-double-play"):
        assert isinstance(compose(task, preset=preset), TrainConfig)


def test_the_tables_of_a_preset_are_of_algorithms_that_there_are():
    tables = yaml.safe_load((configs_root() / "presets" / "offline-to-online.yaml").read_text())
    assert tables["agents"].keys() <= AGENTS.keys()
    for algo in tables["agents"]:
        compose("scene-play", algo, preset="offline-to-online")  # refuses unknown rows


def test_the_demo_reads_the_store_that_comes_with_the_repository():
    config = compose("visual-cube-double-play", preset="demo")
    assert config.data.path == "data/samples/visual-cube-double-play-v0.zarr"
    assert (config.batch_size, config.mixed_precision) == (64, "fast")
    assert (config.encoder.sharing, config.data.frame_stack) == ("shared", 3)
    assert (config.eval.episodes, config.eval.max_episode_steps) == (2, 200)


def test_a_configuration_survives_yaml_exactly(tmp_path):
    config = load(
        shlex.split(
            "--task visual-scene-play --agent.hidden-dims 8 9 --agent.lr 1e-5 --run-dir runs/x "
            "--data.augment.kornia 'RandomGaussianBlur((3, 3), (0.1, 2.0))' --log.wandb offline"
        )
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml") == config


def test_a_dry_run_prints_the_resolved_configuration(capsys, tmp_path):
    argv = ["--task", "scene-play", "--seed", "5"]
    with pytest.raises(SystemExit) as stopped:
        load([*argv, "--dry-run"])
    assert stopped.value.code == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert from_yaml(tmp_path / "config.yaml") == load(argv)


def leaves(config: object, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        names += leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return names


def test_help_explains_every_field(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        load(["--help"])
    assert stopped.value.code == 0
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯]", "", capsys.readouterr().out)
    entries = {}
    for entry in re.split(r"\n\s*(?=--)", text):
        flag, _, rest = entry.partition(" ")
        entries[flag.strip(",")] = re.sub(r"\(default:.*", "", rest, flags=re.S).split()
    flags = [f"--{name.replace('_', '-')}" for name in leaves(compose("scene-play"))]
    for flag in [*flags, "--preset", "--config", "--dry-run"]:
        assert len(entries[flag]) > 1, f"{flag} is not explained"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--task is missing, such as --task visual-cube-double-play"),
        (
            ["--task", "cube-duble-play"],
            "unknown task 'cube-duble-play'. Nearest: cube-double-play",
        ),
        (["--task", "scene-play", "--algo", "deflo"], "unknown algorithm 'deflo'"),
        (["--task", "scene-play", "--preset", "demoo"], "unknown preset 'demoo'"),
        (["--task", "scene-play", "--agent.target-divergenc", "1"], "--agent.target-divergence"),
        (["--task", "scene-play", "--mixed-precision", "fp16"], "('auto', 'no', 'bf16', 'fast')"),
        (["--task", "scene-play", "--encoder.name", "impala_smal"], "impala_small"),
        (
            ["--task", "scene-play", "--agent.discount", "1.5"],
            "discount is 1.5, must lie in (0, 1)",
        ),
        (["--task", "scene-play", "--seed", "one"], "--seed"),
        (["--task", "scene-play", "--config", "none.yaml"], "none.yaml: No such file"),
        (["--resume", "runs/none"], "no run in runs/none"),
    ],
)
def test_a_command_line_that_cannot_be_used_names_the_way_out(argv, words, capsys):
    assert words in refusal(argv, capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sed: 1", "unknown key 'sed'. Nearest: seed"),
        ("agent: {target_div: 1}", "unknown key 'agent.target_div'. Nearest: target_divergence"),
        ("encoder: {sharing: both}", "encoder.sharing is 'both'. Valid: separate, shared."),
        ("seed: 1.5", "seed is 1.5 (float), must be a int"),
        ("agent: {target_divergence: all}", "is 'all', must be float or auto"),
        ("eval: {at_start: 1}", "eval.at_start is 1 (int), must be a bool"),
        (f"agent: {{lr: 1{'0' * 400}}}", "agent.lr is 1000"),
        ("log: 3", "log is 3, must be a mapping"),
        ("data: {augment: {probability: 2}}", "augment probability is 2.0"),
        ("task: 3", "unknown task '3'. Nearest:"),
        ("algo: [deflow]", "unknown algorithm"),
        ("resume: runs/x", "unknown key 'resume'"),
        ("- 1", "holds a list, must be a mapping"),
        ("a: [", "not valid YAML"),
        ("run_dir: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (f"seed: {'[' * 9_999}{']' * 9_999}", "nested too deeply"),
        (f"seed: {'[' * 999_999}", "nested too deeply"),
        (f"seed: {'9' * 5_000}", "not valid YAML"),
        ("seed: 2001-99-99", "not valid YAML"),
        ("seed: !!timestamp x", "not valid YAML"),
        ("agent: &a {lr: *a}", "values, aliases written out"),
        (BOMB, "values, aliases written out"),
        ("# " + "x" * (1 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_key(text, words, layer, capsys):
    path = layer(text)
    said = refusal(["--task", "scene-play", "--config", path], capsys)
    assert path in said
    assert words in said


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DataConfig(num_streams=0), "data.num_streams is 0, must be at least 1"),
        (lambda: EvalConfig(every=-1), "eval.every is -1, must be at least 0"),
        (lambda: compose("scene-play-task9"), "unknown task"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_range(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_batch_that_the_streams_do_not_divide_is_refused(capsys):
    argv = ["--task", "scene-play", "--batch-size", "60", "--data.num-streams", "7"]
    assert "batch_size is 60, must be a multiple of data.num_streams (7)" in refusal(argv, capsys)


def test_an_agent_of_another_algorithm_is_refused():
    with pytest.raises(ValueError, match="agent is a DataConfig; deflow takes a DeFlowConfig"):
        TrainConfig(task="scene-play-task2", agent=DataConfig())


def test_a_resumed_run_keeps_its_settings_and_takes_a_longer_schedule(run):
    config = load(["--resume", str(run), "--offline-steps", "2000000", "--eval.episodes", "5"])
    assert (config.seed, config.task) == (3, "cube-double-play-task2")
    assert (config.offline_steps, config.eval.episodes) == (2_000_000, 5)
    assert config.resume == config.run_dir == run


def test_a_resumed_run_accepts_its_own_task_and_seed_again(run):
    argv = ["--resume", str(run), "--task", "cube-double-play", "--algo", "deflow", "--seed", "3"]
    assert load(argv).seed == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--agent.target-divergence", "auto"], "agent.target_divergence 0.001"),
        (["--seed", "4"], "started with seed 3, the command line asks for 4"),
        (["--agent.lr", "1e-4"], "started with agent.lr 0.0003, the command line asks for 0.0001"),
        (["--task", "scene-play"], "started with task 'cube-double-play-task2'"),
        (["--task", "scen-play"], "Nearest: scene-play"),
        (["--preset", "demo"], "drop --preset and --config"),
    ],
)
def test_a_resumed_run_refuses_to_become_another_one(flags, words, run, capsys):
    assert words in refusal(["--resume", str(run), *flags], capsys)


def test_a_resumed_run_keeps_the_start_of_its_online_phase(run, capsys):
    config = load(["--task", "cube-double-play", "--online-steps", "10"])
    (run / "config.yaml").write_text(to_yaml(config))
    assert "offline_steps" in refusal(["--resume", str(run), "--offline-steps", "9"], capsys)


@pytest.mark.parametrize(
    ("requested", "launched", "has_bf16", "expected"),
    [
        ("auto", None, True, "no"),
        ("auto", "no", True, "no"),
        ("auto", "bf16", False, "bf16"),
        ("no", None, True, "no"),
        ("no", "no", True, "no"),
        ("bf16", None, False, "bf16"),
        ("bf16", "no", True, "bf16"),
        ("bf16", "bf16", True, "bf16"),
        ("fast", "no", True, "bf16"),
        ("fast", None, False, "no"),
        ("fast", "bf16", False, "bf16"),
    ],
)
def test_precision_follows_the_script_then_the_launcher(requested, launched, has_bf16, expected):
    assert resolve_mixed_precision(requested, launched, has_bf16) == expected


@pytest.mark.parametrize(
    ("requested", "launched"), [("no", "bf16"), ("auto", "fp16"), ("bf16", "fp16"), ("no", "fp8")]
)
def test_contradicting_precisions_are_refused_with_both_values(requested, launched):
    with pytest.raises(UserError, match=f"{launched}.*--mixed_precision no"):
        resolve_mixed_precision(requested, launched, has_bf16=True)


def test_a_run_folder_is_named_by_task_algorithm_seed_and_time():
    config = compose("cube-double-play")
    folder = default_run_dir(config, datetime(2026, 3, 4, 5, 6, 7))
    assert folder == Path("runs/cube-double-play-task2/deflow/seed0-20260304-050607")


def test_an_unknown_row_in_an_agents_table_is_refused(tmp_path, monkeypatch):
    for name in ("tasks", "agents"):
        (tmp_path / name).mkdir()
    for path in (configs_root() / "tasks").glob("*.yaml"):
        (tmp_path / "tasks" / path.name).write_text(path.read_text())
    (tmp_path / "agents" / "deflow.yaml").write_text("rows: {cube-doubel: {seed: 1}}")
    monkeypatch.setattr("deflow_vision.config.command_line.configs_root", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"deflow\.yaml: unknown family or task 'cube-doubel'"):
        compose("cube-double-play")


def test_an_agent_without_a_discount_takes_no_switches(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Plain:
        lr: float = 3e-4

    class Clone:
        Config = Plain

    monkeypatch.setitem(AGENTS, "deflow", Clone)
    monkeypatch.setattr(
        "deflow_vision.config.command_line.read_yaml", lambda path: {"rows": {}, "settings": {}}
    )
    assert compose("antmaze-giant-navigate").agent == Plain()


def test_the_accelerate_configs_leave_precision_to_the_script():
    for path in (configs_root() / "accelerate").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"


@pytest.mark.parametrize("name", ["cpu", "one-gpu", "multi-gpu", "multi-node"])
def test_accelerate_accepts_its_config(name):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(configs_root() / "accelerate" / f"{name}.yaml"))
    assert loaded.num_machines == (2 if name == "multi-node" else 1)


def test_an_own_environment_takes_no_published_settings_and_names_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFLOW_DATA", "/stores")
    config = load(["--env", "my_package.mine:make", "--agent.discount", "0.9"])
    assert (config.env, config.task) == ("my_package.mine:make", "my_package.mine.make")
    assert config.data.path == "/stores/my_package.mine.make.zarr"
    assert (config.agent.discount, config.agent.target_divergence) == (
        0.9,
        AGENTS["deflow"].Config().target_divergence,
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml") == config


def test_an_own_environment_may_stand_in_a_file_under_a_name_of_its_own(layer):
    path = layer("{env: 'mine:make', task: pusher, data: {path: x.zarr}}")
    config = load(["--config", path])
    assert (config.env, config.task, config.data.path) == ("mine:make", "pusher", "x.zarr")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--env", "mine"], "env is 'mine': write module:factory"),
        (["--env", "my/env.py:make"], "env is 'my/env.py:make': write module:factory"),
        (
            ["--env", "mine:make", "--task", "scene-play"],
            "'scene-play' is a published task: with --env mine:make, give it another name",
        ),
        (["--env", "mine:make", "--task", "../x"], "the task's name '../x' must have letters"),
    ],
)
def test_an_own_environment_that_cannot_be_named_is_refused(argv, words, capsys):
    assert words in refusal(argv, capsys)


def test_a_resumed_run_keeps_its_environment(run, capsys):
    config = load(["--env", "mine:make", "--task", "pusher"])
    (run / "config.yaml").write_text(to_yaml(config))
    assert load(["--resume", str(run), "--task", "pusher", "--env", "mine:make"]).task == "pusher"
    said = refusal(["--resume", str(run), "--env", "yours:make"], capsys)
    assert "started with env 'mine:make', the command line asks for 'yours:make'" in said
