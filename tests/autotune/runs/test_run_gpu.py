"""Whole runs of loops on a GPU, which is a fake one."""

from pathlib import Path

from autotune.best_config import read_best_config

from ..commands import autotune_run, trials

ROOT = Path(__file__).resolve().parents[3]
INSTALL = f"""sys.path.insert(0, {str(ROOT)!r})
    from tests.autotune import fake_torch, fake_gpu
    fake_gpu.install()"""
# A fifth of a gibibyte for each sample, of ten; the device works while the loop goes on.
STEP = """
            fake_gpu.allocate(fake_gpu.GIB * len(batch) // 5)
            fake_gpu.launch(0.01)
            fake_gpu.synchronise()
"""


def gpu_study(study, *, before=INSTALL, step=STEP, max_trials=2, **changes):
    return study(script={"before": before, "step": step}, max_trials=max_trials, **changes)


def test_settings_leave_headroom_and_the_largest_batch_that_fits_is_told(study):
    axes = {"batch_size": [4, 8, 16, 32, 42, 64], "num_workers": [0]}
    done = autotune_run(*gpu_study(study, axes=axes, sampler="auto", max_trials=8))
    assert done.returncode == 0, done.stderr
    assert (
        "the GPU's utilisation and energy, and what others do on it, are not known" in done.stdout
    )
    # 42 samples take 8.4 GiB, beside one that others have; 64 would not fit at all.
    best = read_best_config(Path("best_config.yaml"))
    assert best.config.batch_size == 32
    assert best.expected.device_memory_bytes == 32 * 2**30 // 5
    failed = trials().query("state == 'failed'")
    assert set(failed["batch_size"]) <= {42, 64}
    assert set(failed["cause"]) <= {"too little GPU memory left", "out of GPU memory"}
    assert (
        "the largest batch size that fits on the GPU is 32, which is chosen: it takes"
        in done.stdout
    )
    # Page-locked memory is tried, as the first steps showed that there is a GPU.
    assert set(trials()["pin_memory"].dropna()) == {True, False}


def test_more_of_the_memory_is_used_where_the_user_says_so(study):
    axes = {"batch_size": [4, 42], "num_workers": [0], "pin_memory": [False]}
    options = gpu_study(study, axes=axes, sampler="auto")
    done = autotune_run("--gpu-headroom", "0.02", *options)
    assert done.returncode == 0, done.stderr
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 42


def test_where_the_gpu_is_used_before_trials_start_afresh_and_that_is_told(study):
    before = f"{INSTALL}\n    fake_gpu.use()"
    axes = {"batch_size": [4, 8], "num_workers": [0], "pin_memory": [False]}
    done = autotune_run(*gpu_study(study, before=before, axes=axes, sampler="auto"))
    assert done.returncode == 0, done.stderr
    assert "each trial starts afresh: CUDA is initialised when load_config is called" in done.stdout
    assert set(trials()["start_mode"]) == {"fresh"}
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 8


def test_a_driver_that_was_initialised_unseen_is_found_by_the_first_forked_trial(study):
    before = f"{INSTALL}\n    fake_gpu.ask()"
    axes = {"batch_size": [4, 8], "num_workers": [0], "pin_memory": [False]}
    done = autotune_run(*gpu_study(study, before=before, axes=axes, sampler="auto"))
    assert done.returncode == 0, done.stderr
    [reason] = [line for line in done.stdout.splitlines() if "each trial starts afresh" in line]
    assert "a forked trial failed: RuntimeError: Cannot re-initialize CUDA in forked" in reason
    [failed] = trials().query("state == 'failed'").to_dict("records")
    assert failed["cause"] == "GPU not usable after a fork"
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 8


def test_hosts_alone_ask_the_management_library_and_trials_find_what_the_user_set(
    study, monkeypatch
):
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    # Lightning sets it where it is imported.
    monkeypatch.delenv(name, raising=False)
    step = f"""
            assert os.environ.get("{name}") is None, "in a trial"
            time.sleep(0.01)
"""
    before = f"open(os.environ.get('{name}', 'none') + '.seen', 'w').close()"
    axes = {"batch_size": [4, 8], "num_workers": [0]}
    done = autotune_run(*gpu_study(study, before=before, step=step, axes=axes, sampler="auto"))
    assert done.returncode == 0, done.stderr
    assert Path("1.seen").exists() and Path("none.seen").exists()
    assert trials().query("state == 'failed'").empty
