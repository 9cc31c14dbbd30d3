"""Which of a script's loops is measured, and what becomes of the others: real scripts.

Each script prints what it does, and has a loop that must be found.
"""

import dataclasses
import textwrap
from pathlib import Path

import pytest

from autotune.blocks import BlockMode, BlockRequest
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, StartMode, summarise
from autotune.study.definition import StudyDefinition
from autotune.system.load import QuietKeeper
from autotune.trials.trial import TrialFailedError
from autotune.tuning.trial_runs import Limits, run_short

from .conftest import CONFIG, HEAD

BLOCK = BlockRequest(min_s=0.05, settle_s=0.1)


def visited(trial, *, num_blocks=3):
    """What a visit of a trial measures."""
    definition = StudyDefinition(name="x", command=("x",), block_s=0.05)
    limits = Limits(step_s=None, first_step_deadline_s=30.0, end_s=float("inf"))
    return run_short(
        trial,
        definition,
        num_blocks=num_blocks,
        incumbent=0.0,
        limits=limits,
        keeper=QuietKeeper(0.0),
    ).measurement


LEAVING = {
    "max_steps": """
        step = 0
        while step < 60:
            for x in autotune.steps(loader):
                train_step(x)
                step += 1
                if step >= 60:
                    break
        """,
    "break_in_the_only_loop": """
        for step, x in enumerate(autotune.steps(cycle(loader))):
            train_step(x)
            if step == 59:
                break
        """,
    "next": """
        batches = cycle(autotune.steps(loader))
        step = 0
        while step < 60:
            train_step(next(batches))
            step += 1
        """,
    "next_and_iter_again": """
        batches = iter(autotune.steps(loader))
        for step in range(60):
            try:
                x = next(batches)
            except StopIteration:
                batches = iter(autotune.steps(loader))
                x = next(batches)
            train_step(x)
        """,
    "islice_per_epoch": """
        def run_epoch():
            for x in itertools.islice(autotune.steps(loader), 6):
                train_step(x)

        for epoch in range(10):
            run_epoch()
        """,
    "return_from_within": """
        def train():
            step = 0
            while True:
                for x in autotune.steps(loader):
                    train_step(x)
                    step += 1
                    if step == 60:
                        return
        train()
        """,
    "generator_in_between": """
        def batches():
            for x in autotune.steps(loader):
                yield x
        step = 0
        for epoch in range(100):
            for x in batches():
                train_step(x)
                step += 1
                if step == 60:
                    break
            if step == 60:
                break
        """,
    "sys_exit": """
        for epoch in range(1000):
            for step, x in enumerate(autotune.steps(loader)):
                train_step(x)
                if step == 59:
                    sys.exit()
        """,
}


@pytest.mark.parametrize("kind", LEAVING)
def test_a_loop_that_is_left_is_measured_and_nothing_after_it_runs(start, kind):
    with start(LEAVING[kind]) as trial:
        found = visited(trial)
    # 2 ms a step at least.
    assert 200 < found.samples_per_s < 2000
    assert found.samples_per_update == 4
    assert not Path("afterwards").exists()
    assert not Path("model.pt").exists()


@pytest.mark.alone
def test_what_a_script_does_between_two_passes_is_not_counted(start):
    lines = """
        def run_epoch():
            for i, x in enumerate(autotune.steps(loader)):
                train_step(x)
                if i == 5:
                    break
        for epoch in range(1000):
            run_epoch()
            time.sleep(0.05)
        """
    with start(lines) as trial:
        found = visited(trial)
    # With the pauses it would be 400.
    assert found.samples_per_s > 700


EVALUATING = {
    "first": """
        @torch.no_grad()
        def evaluate():
            for x in autotune.steps(other):
                time.sleep(0.02)
        evaluate()
        for x in autotune.steps(loader):
            train_step(x)
        """,
    "shared_function": """
        def run(loader, train):
            torch.set_grad_enabled(train)
            for x in autotune.steps(loader):
                train_step(x) if train else time.sleep(0.02)
        for epoch in range(100):
            run(other, False)
            run(loader, True)
        """,
    "every_ten_steps": """
        for i, x in enumerate(autotune.steps(loader)):
            train_step(x)
            if i % 10 == 0:
                model.eval()
                for y in autotune.steps(other):
                    time.sleep(0.02)
        """,
    "with_gradients_on": """
        for x in autotune.steps(other):
            model(x)
            time.sleep(0.02)
        for x in autotune.steps(loader):
            train_step(x)
        """,
}


@pytest.mark.parametrize("kind", EVALUATING)
def test_the_loop_in_which_an_optimizer_steps_is_measured(start, kind):
    with start(EVALUATING[kind]) as trial:
        assert trial.facts.samples_per_epoch == 40
        assert trial.facts.notes == ()
        found = visited(trial)
    # An evaluation would have brought it below 200.
    assert found.samples_per_s > 300


def test_a_loop_without_an_optimizer_is_measured_and_said_to_have_none(start):
    head = HEAD.replace("optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)\n", "")
    lines = """
        for x in autotune.steps(loader):
            time.sleep(0.002)
        """
    with start(lines, head=head) as trial:
        assert trial.facts.notes == ("no optimizer takes a step in this loop",)
        found = visited(trial)
        assert found.samples_per_update is None


SEVERAL = {
    "zip": """
        for x, y in zip(autotune.steps(loader), autotune.steps(other)):
            train_step(x)
        """,
    "three": """
        third = config.dataloader(Rows(8))
        for x, y, z in zip(autotune.steps(loader), autotune.steps(other), autotune.steps(third)):
            train_step(x)
        """,
    "next_of_another": """
        more = iter(autotune.steps(other))
        for x in autotune.steps(loader):
            try:
                y = next(more)
            except StopIteration:
                more = iter(autotune.steps(other))
                y = next(more)
            train_step(x)
        """,
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_step_may_take_from_several_loaders(start, kind):
    with start(SEVERAL[kind]) as trial:
        found = visited(trial)
        assert found.samples_per_s > 200
        assert found.samples_per_update == 4
        for mode in (BlockMode.LOAD, BlockMode.COMPUTE):
            request = BlockRequest(mode=mode, min_s=0.05)
            assert trial.measure(request, deadline_s=30).blocks


UPDATES = {
    "by_hand": ("train_step(x) if i % 4 == 3 else model(x).mean().backward()", 16),
    "first_of_four": ("train_step(x) if i % 4 == 0 else model(x).mean().backward()", 16),
    "two_optimizers": ("train_step(x); second.step(); second.step()", 2),
    "skipped": ("train_step(x) if i % 2 else None", 8),
}


@pytest.mark.parametrize("kind", UPDATES)
def test_samples_per_update_are_those_of_the_optimizer_steps_that_happen(start, kind):
    step, expected = UPDATES[kind]
    lines = f"""
        second = torch.optim.Adam(model.parameters(), lr=1e-6)
        for i, x in enumerate(autotune.steps(loader)):
            time.sleep(0.002)
            {step}
        """
    with start(lines) as trial:
        samples = [trial.measure(BLOCK, deadline_s=30) for _ in range(6)]
    found = summarise(samples, CONFIG)
    assert found.samples_per_update == pytest.approx(expected, rel=0.25)
    assert found.seconds_per_optimizer_step == pytest.approx(
        found.seconds_per_step * found.samples_per_update / 4
    )


def test_a_stand_in_has_all_that_the_loader_has(start):
    lines = """
        wrapped = autotune.steps(loader)
        assert len(wrapped) == len(loader) == 10
        assert wrapped.dataset is loader.dataset and wrapped.sampler is loader.sampler
        assert wrapped.batch_size == 4 and isinstance(wrapped, torch.utils.data.DataLoader)
        for epoch in range(2):
            for x in wrapped:
                train_step(x)
        """
    with start(lines) as trial:
        assert trial.measure(BLOCK, deadline_s=30).blocks


SCHEDULES = {
    "one_cycle": (
        "schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)",
        "schedule.step()",
    ),
    "list_of_rates": (
        "rates = [0.1] * 20\n"
        "schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: rates[n])",
        "schedule.step()",
    ),
    "array_indexed_by_step": ("rates = torch.linspace(0.1, 0.0, 20)", "rates[i].item()"),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_with_an_end_does_not_fail_a_trial(start, kind):
    before, each = SCHEDULES[kind]
    lines = textwrap.dedent("""
        {before}
        i = 0
        for epoch in range(2):
            for x in autotune.steps(loader):
                train_step(x)
                {each}
                i += 1
        """).format(before=before, each=each)
    with start(lines) as trial:
        found = visited(trial)
    assert found.num_steps >= 10


FAILING = {
    "with_a_temporary_directory": """
        import tempfile
        with tempfile.TemporaryDirectory(dir=".", prefix="mine-") as directory:
            for x in autotune.steps(loader):
                train_step(x)
                if config.batch_size == 5:
                    raise ValueError("bad news")
        """,
    "finally": """
        try:
            for x in autotune.steps(loader):
                train_step(x)
                if config.batch_size == 5:
                    raise ValueError("bad news")
        finally:
            torch.save(model.state_dict(), "rescued.pt")
        """,
    "except": """
        try:
            for x in autotune.steps(loader):
                train_step(x)
                if config.batch_size == 5:
                    raise ValueError("bad news")
        except Exception:
            open("rescued.pt", "w").close()
        """,
}


@pytest.mark.parametrize("kind", FAILING)
@pytest.mark.parametrize("mode", [StartMode.FORK, StartMode.FRESH])
def test_what_a_script_does_about_a_failure_does_not_happen(start, kind, mode):
    with pytest.raises(TrialFailedError) as caught:
        start(FAILING[kind], config=ThroughputConfig(batch_size=5), mode=mode).measure(
            BLOCK, deadline_s=30
        )
    failure: Failure = caught.value.failure
    assert failure.cause is FailureCause.CRASHED
    assert failure.message == "ValueError: bad news"
    assert "Traceback" in failure.output
    assert not Path("rescued.pt").exists()


def test_exit_handlers_that_a_fork_inherits_do_not_run(start):
    head = HEAD.replace(
        "model = ",
        "import atexit, tempfile\n"
        "scratch = tempfile.TemporaryDirectory(dir='.', prefix='mine-')\n"
        "atexit.register(lambda: open('handled', 'w').close())\nmodel = ",
        1,
    )
    lines = """
        for x in autotune.steps(loader):
            train_step(x)
            if config.batch_size == 5:
                raise ValueError("bad news")
        """
    for config in (ThroughputConfig(batch_size=5), CONFIG):
        try:
            with start(lines, head=head, config=config) as trial:
                trial.measure(BLOCK, deadline_s=30)
                assert list(Path.cwd().glob("mine-*"))
        except TrialFailedError:
            assert config.batch_size == 5
            assert list(Path.cwd().glob("mine-*"))
    assert not Path("handled").exists()


IGNORED = {
    "batch_size": (
        "loader = torch.utils.data.DataLoader(Rows(40), batch_size=8)",
        ThroughputConfig(batch_size=5),
    ),
    "num_workers": (
        "loader = torch.utils.data.DataLoader(Rows(40), batch_size=config.batch_size)",
        ThroughputConfig(batch_size=4, num_workers=1),
    ),
    # Nothing loads beside the training, whatever the number of workers.
    "num_workers of a generator": (
        "loader = (torch.ones(config.batch_size, 3) for _ in range(100))",
        ThroughputConfig(batch_size=4, num_workers=1),
    ),
}


@pytest.mark.parametrize("setting", IGNORED)
def test_a_setting_that_the_script_ignores_is_named(start, setting):
    line, config = IGNORED[setting]
    lines = line + "\nfor x in autotune.steps(loader):\n    train_step(x)\n"
    with pytest.raises(TrialFailedError) as caught:
        start(lines, config=config)
    assert caught.value.failure.cause is FailureCause.SETTING_IGNORED
    assert caught.value.failure.setting == setting.partition(" ")[0]


def test_a_first_batch_asked_for_in_another_loop_does_not_end_the_training(start):
    lines = """
    def first(iterator):
        for _ in range(1):
            return next(iterator)

    iterator = iter(autotune.steps(loader))
    x = first(iterator)
    for _ in range(1000):
        train_step(x)
        open("log", "w").close()
        x = next(iterator)
    """
    with start(lines) as trial:
        assert trial.measure(BLOCK, deadline_s=30).blocks


def test_a_step_is_timed_alone_across_the_epochs_of_a_loop_that_begins_each_itself(start):
    lines = """
    for epoch in range(1000):
        iterator = iter(autotune.steps(loader))
        for _ in range(len(loader)):
            train_step(next(iterator))
    """
    config = dataclasses.replace(CONFIG, num_workers=1, prefetch_factor=2, persistent_workers=True)
    with start(lines, config=config) as trial:
        assert trial.measure(BLOCK, deadline_s=30).blocks
        alone = BlockRequest(mode=BlockMode.COMPUTE, min_s=0.2)
        assert trial.measure(alone, deadline_s=30).blocks[0].num_steps > 2 * 10


def test_without_workers_there_is_nothing_to_prefetch_either(start):
    lines = """
        for x in autotune.steps(torch.ones(config.batch_size, 3) for _ in range(100)):
            train_step(x)
        """
    head = HEAD.replace(
        "autotune.ThroughputConfig(batch_size=4)",
        "autotune.ThroughputConfig(batch_size=4, num_workers=2)",
    )
    config = ThroughputConfig(batch_size=4, num_workers=2)
    with start(lines, config=config, head=head) as trial:
        assert set(trial.facts.fixed) == {"num_workers", "prefetch_factor"}


@pytest.mark.parametrize(
    "beside",
    [
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "subprocess.Popen(['sleep', '60'])",
    ],
)
def test_a_loader_with_threads_or_processes_of_its_own_may_take_its_workers(start, beside):
    lines = f"""
        import subprocess, threading, time
        def batches():
            {beside}
            while True:
                yield torch.ones(config.batch_size, 3)
        for x in autotune.steps(batches()):
            train_step(x)
        """
    with start(lines, config=ThroughputConfig(batch_size=4, num_workers=1)) as trial:
        assert "num_workers" not in trial.facts.fixed


def test_a_loader_of_the_scripts_own_is_measured_as_it_is_with_the_scripts_settings(start):
    lines = """
        loader = torch.utils.data.DataLoader(Rows(40), batch_size=8)
        for x in autotune.steps(loader):
            train_step(x)
        """
    with start(lines) as trial:
        assert trial.facts.fixed == {"batch_size": "the loader was made with batch_size=8"}
        assert visited(trial).samples_per_update == 8


STREAMS = {
    "repeats": ("range(100)", True),
    "shards": ("range(info.id, 100, info.num_workers)", False),
    "shuffles": ("torch.randperm(100).tolist()", True),
    "constant": ("[7] * 100", False),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_workers_that_repeat_each_others_samples_are_found(start, kind):
    numbers, repeats = STREAMS[kind]
    lines = f"""
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                info = torch.utils.data.get_worker_info()
                for number in {numbers}:
                    yield torch.full((3,), float(number))
        for x in autotune.steps(config.dataloader(Stream())):
            train_step(x)
        """
    config = ThroughputConfig(batch_size=4, num_workers=2)
    if not repeats:
        with start(lines, config=config) as trial:
            assert trial.measure(BLOCK, deadline_s=30).blocks
        return
    with pytest.raises(TrialFailedError, match="get_worker_info") as caught:
        start(lines, config=config)
    assert caught.value.failure.cause is FailureCause.REPEATED_DATA
    assert caught.value.failure.setting == "num_workers"


def test_a_batch_whose_samples_cannot_be_counted_asks_for_units(start):
    lines = """
        def rows():
            while True:
                yield torch.zeros(1, 30, 3)
        for x in autotune.steps(rows()):
            train_step(x[0])
        """
    with pytest.raises(TrialFailedError, match="units") as caught:
        start(lines)
    assert caught.value.failure.cause is FailureCause.NOT_COUNTABLE


def test_caches_that_steps_fill_are_left_for_the_next_trial(start):
    lines = """
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.abspath("compiled")
        for x in autotune.steps(loader):
            train_step(x)
            os.makedirs("compiled/kernels", exist_ok=True)
            open("compiled/kernels/new", "w").close()
            os.rename("compiled/kernels/new", "compiled/kernels/one")
            open("log", "w").close()
        """
    with start(lines) as trial:
        assert trial.measure(BLOCK, deadline_s=30).blocks
    assert Path("compiled/kernels/one").exists()
    assert not Path("compiled/kernels/new").exists()
    assert trial.removed_files == [str(Path("log").absolute())]


def test_what_steps_write_is_removed_and_replaces_nothing(start):
    Path("best.pt").write_text("of an earlier training")
    Path("last.pt").write_text("of an earlier training")
    lines = """
        for i, x in enumerate(autotune.steps(loader)):
            train_step(x)
            os.makedirs("checkpoints", exist_ok=True)
            torch.save(model.state_dict(), f"checkpoints/{i % 3}.pt")
            torch.load(f"checkpoints/{i % 3}.pt")
            torch.save(model.state_dict(), "best.pt")
            torch.save(obj=model.state_dict(), f="new.pt")
            torch.save(model.state_dict(), "half.pt")
            os.rename(src="half.pt", dst="whole.pt")
            os.replace("new.pt", "last.pt")
            with open("log.txt", "a") as log:
                log.write("step")
        """
    trial = start(lines)
    assert trial.measure(BLOCK, deadline_s=30).blocks
    assert Path("log.txt").exists()
    trial.close()
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["best.pt", "last.pt", "train.py"]
    assert Path("best.pt").read_text() == Path("last.pt").read_text() == "of an earlier training"
    assert str(Path("log.txt").absolute()) in trial.removed_files


def test_what_a_loader_or_the_preparation_writes_stays(start):
    head = HEAD.replace(
        "    def __getitem__(self, index):\n",
        "    def __getitem__(self, index):\n        open(f'cache-{index}', 'w').close()\n",
    )
    lines = """
        open("prepared", "w").close()
        for x in autotune.steps(loader):
            train_step(x)
        """
    with start(lines, head=head) as trial:
        assert trial.measure(BLOCK, deadline_s=30).blocks
    assert Path("prepared").exists()
    assert list(Path.cwd().glob("cache-*"))


# Of threads and coroutines: what reads ahead has a loop of its own, which the training is not.
AHEAD = """
import asyncio, concurrent.futures, queue, threading

def note(text):
    with open("results.csv", "a") as results:
        results.write(text)

def background(source, depth=3):
    waiting = queue.Queue(depth)
    def fill():
        for x in source:
            waiting.put(x)
        waiting.put(None)
    threading.Thread(target=fill, daemon=True).start()
    while (x := waiting.get()) is not None:
        yield x

class Background(threading.Thread):
    def __init__(self, source):
        super().__init__(daemon=True)
        self.queue, self.source = queue.Queue(3), source
        self.start()
    def run(self):
        for x in self.source:
            self.queue.put(x)
        self.queue.put(None)
    def __iter__(self):
        return self
    def __next__(self):
        x = self.queue.get()
        if x is None:
            raise StopIteration
        return x
"""
READING_AHEAD = {
    "generator": """
        step = 0
        for epoch in range(100):
            for x in background(autotune.steps(loader)):
                train_step(x)
                step += 1
                if step == 60:
                    break
            if step == 60:
                break
        """,
    "class_with_a_generator_before_it": """
        def doubled():
            while True:
                for x in autotune.steps(loader):
                    yield 2 * x
        def train():
            for step, x in enumerate(Background(doubled())):
                train_step(x)
                if step == 59:
                    return
        train()
        """,
    "left_in_each_epoch": """
        def run_epoch():
            for step, x in enumerate(background(autotune.steps(loader))):
                train_step(x)
                if step == 9:
                    break
        for epoch in range(8):
            run_epoch()
        """,
    "stopped_in_each_epoch": """
        for epoch in range(12):
            stop = threading.Event()
            waiting = queue.Queue(2)
            def fill():
                for x in autotune.steps(loader):
                    if stop.is_set():
                        break
                    waiting.put(x)
            thread = threading.Thread(target=fill)
            thread.start()
            for step in range(5):
                train_step(waiting.get())
            stop.set()
            while thread.is_alive():
                try:
                    waiting.get(timeout=0.01)
                except queue.Empty:
                    pass
        """,
    "executor": """
        batches = cycle(autotune.steps(loader))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            coming = pool.submit(next, batches)
            for step in range(60):
                x = coming.result()
                coming = pool.submit(next, batches)
                train_step(x)
        """,
    "all_in_a_thread": """
        def train():
            for step, x in enumerate(background(cycle(autotune.steps(loader)))):
                train_step(x)
                if step == 59:
                    break
            note("in the thread")
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        """,
    "producer_coroutine": """
        async def main():
            waiting = asyncio.Queue(2)
            async def produce():
                for x in cycle(autotune.steps(loader)):
                    await waiting.put(x)
            task = asyncio.create_task(produce())
            for step in range(60):
                train_step(await waiting.get())
            note("in the coroutine")
        asyncio.run(main())
        """,
    "asked_for_in_another_thread": """
        async def train():
            batches = cycle(autotune.steps(loader))
            for step in range(60):
                train_step(await asyncio.to_thread(next, batches))
            note("in the coroutine")
        asyncio.run(train())
        """,
}
COROUTINES = {
    "next": """
        async def train():
            batches = cycle(autotune.steps(loader))
            step = 0
            while step < 60:
                train_step(next(batches))
                step += 1
                await asyncio.sleep(0)
            note("in the coroutine")
        asyncio.run(train())
        """,
    "left_in_each_epoch": """
        async def train():
            for epoch in range(10):
                for i, x in enumerate(autotune.steps(loader)):
                    train_step(x)
                    if i == 5:
                        break
                await asyncio.sleep(0)
        asyncio.run(train())
        """,
    "task_that_another_awaits": """
        async def train():
            for step, x in enumerate(cycle(autotune.steps(loader))):
                train_step(x)
                await asyncio.sleep(0)
                if step == 59:
                    return
        async def main():
            await asyncio.gather(asyncio.create_task(train()), asyncio.sleep(0.01))
            note("in the coroutine")
        asyncio.run(main())
        """,
    "async_generator": """
        async def batches():
            while True:
                for x in autotune.steps(loader):
                    yield x
                    await asyncio.sleep(0)
        async def train():
            step = 0
            async for x in batches():
                train_step(x)
                step += 1
                if step == 60:
                    break
            await asyncio.to_thread(note, "in a thread")
        asyncio.run(train())
        """,
    "one_run_per_epoch": """
        async def run_epoch():
            for i, x in enumerate(autotune.steps(loader)):
                train_step(x)
                await asyncio.sleep(0)
                if i == 5:
                    return
        for epoch in range(10):
            asyncio.run(run_epoch())
        """,
    "scheduler_of_a_library": """
        os.makedirs("site-packages", exist_ok=True)
        with open("site-packages/scheduler.py", "w") as lines:
            lines.write("def run(coroutine):\\n while True:\\n  try: coroutine.send(None)\\n")
            lines.write("  except StopIteration: return\\n")
        sys.path.insert(0, "site-packages")
        import scheduler
        @types.coroutine
        def pause():
            yield
        async def train():
            for step, x in enumerate(cycle(autotune.steps(loader))):
                train_step(x)
                await pause()
                if step == 59:
                    break
            note("in the coroutine")
        scheduler.run(train())
        """,
}


def measured(start, lines):
    """What is measured of a loop that ends meanwhile; nothing of what follows it may happen."""
    results = Path("results.csv")
    results.write_text("of an earlier training")
    lines = f"{AHEAD}{textwrap.dedent(lines)}note('behind the loop')\n"
    with start(lines) as trial:
        found = visited(trial, num_blocks=8)
    assert results.read_text() == "of an earlier training"
    assert not Path("model.pt").exists()
    return found


@pytest.mark.parametrize("kind", READING_AHEAD)
def test_a_loop_for_which_another_thread_or_coroutine_reads_is_measured(start, kind):
    assert 200 < measured(start, READING_AHEAD[kind]).samples_per_s < 4000


@pytest.mark.parametrize("kind", COROUTINES)
def test_a_loop_in_a_coroutine_is_measured_and_nothing_after_it_runs(start, kind):
    found = measured(start, COROUTINES[kind])
    assert 200 < found.samples_per_s < 2000
    assert found.samples_per_update == 4


def test_what_steps_write_beside_a_thread_that_loads_replaces_nothing(start):
    Path("last.pt").write_text("of an earlier training")
    lines = """
        for i, x in enumerate(background(autotune.steps(loader))):
            train_step(x)
            torch.save(model.state_dict(), "last.pt")
            open(f"log-{i}", "w").close()
        """
    head = HEAD.replace(
        "        return torch.full", "        time.sleep(0.002)\n        return torch.full"
    )
    with start(AHEAD + textwrap.dedent(lines), head=head) as trial:
        assert trial.measure(BLOCK, deadline_s=30).blocks
    assert Path("last.pt").read_text() == "of an earlier training"
    assert not list(Path.cwd().glob("log-[1-9]*"))
