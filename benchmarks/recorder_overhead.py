"""What the recorder adds to a training step, with and without it in turns.

    python benchmarks/recorder_overhead.py [--model fastvim_base] [--image-size 112] [--batch 8]
        [--rounds 8] [--window 1] [--threads 2] [--json FILE]

One model and one optimiser take the steps; the recorder's switch is turned between neighbours, so
both see the same machine. Printed: the median of each, and the median and the quartiles of the
differences of neighbours over the median step without; on a CPU by the clock and in the processor's
time, which others on the machine hardly change. Losses are read every `--window` steps, as the
training loop does on a GPU. On a CPU, where a call ends when its work is done, also the time inside
the recorder's own calls as a share of the step they are part of: a shared machine's steps differ
by more than the recorder costs. Inside them only the wall's clock is read, because reading the
processor's waits for what runs on the other cores, up to 2 ms a call and some 50 calls a step; of
the processor's time they can have had no more than all threads all that while.
"""

import functools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from timing import arguments, finish, spread

from fastvim import tasks
from fastvim.models import create_model
from fastvim.models.backbone import Block
from fastvim.training.devices import choose_device, choose_precision
from fastvim.training.recipe import Recipe
from fastvim.training.recorder import Recorder
from fastvim.training.trainer import Trainer


def main() -> None:
    """Measure and print."""
    given = arguments(__doc__, rounds=8, model="fastvim_base", image_size=112, batch=8, window=1)
    recipe = Recipe(epochs=1000, batch_size=given.batch, clip_grad=1.0)
    device = choose_device()
    clocks = ["wall", "processor"] if device.type == "cpu" else ["wall"]

    def clock() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])[: len(clocks)]

    precision = choose_precision(recipe, device)
    model = create_model(given.model, image_size=given.image_size)
    with tempfile.TemporaryDirectory() as folder:
        task = tasks.create("classification", recipe)
        trainer = Trainer(
            task,
            model,
            recipe,
            steps_per_epoch=1000,
            seed=0,
            device=device,
            precision=precision,
            recorder=lambda model: Recorder(model, Path(folder)),
        )
        recorder = trainer.recorder
        size = (given.batch, model.config.in_channels, *model.config.image_size)
        images = torch.randn(size).to(device)
        labels = torch.arange(given.batch, device=device) % model.config.num_classes
        places = [torch.arange(given.batch)] * given.window
        step = read = 0
        inside = 0.0

        def timed(call):
            @functools.wraps(call)
            def wrapper(*args):
                nonlocal inside
                began = time.perf_counter()
                try:
                    return call(*args)
                finally:
                    inside += time.perf_counter() - began

            return wrapper

        recorder.before_step = timed(recorder.before_step)
        recorder.after_step = timed(recorder.after_step)
        recorder.read = timed(recorder.read)
        recorder.measured = timed(recorder.measured)
        for module in model.modules():
            if isinstance(module, Block):
                module.mixer.observer = timed(module.mixer.observer)
                for key, hook in module._forward_hooks.items():
                    module._forward_hooks[key] = timed(hook)

        def window(recording: bool) -> np.ndarray:
            nonlocal step, read, inside
            trainer.recorder, inside = recorder if recording else None, 0.0
            began = clock()
            for _ in range(given.window):
                result = trainer.step(step, images, labels)
                step += 1
            result.loss.item()
            if recording:
                read += given.window
                recorder.read(read, places)
            return (clock() - began) / given.window

        for recording in (False, True):
            window(recording)
        times, own = [], []
        for pair in range(given.rounds):
            measured = {}
            for recording in (False, True) if pair % 2 else (True, False):
                measured[recording] = window(recording)
                if recording:
                    spent = inside / given.window * np.array([1, given.threads])[: len(clocks)]
                    own.append(100 * spent / (measured[True] - spent))
            times.append((measured[False], measured[True]))
    # (rounds, without and with, clocks) and (rounds, clocks).
    seconds, own = np.array(times), np.array(own)
    result = {"title": f"{given.model}, {size}, {precision} on {device}"}
    print(f"{result['title']}, {given.threads} threads, {given.rounds} pairs")
    for i, name in enumerate(clocks):
        without, with_it = 1000 * np.median(seconds[:, :, i], axis=0)
        added = spread(
            (100 * np.diff(seconds[:, :, i])[:, 0] / np.median(seconds[:, 0, i])).tolist()
        )
        result[name] = {
            "step without the recorder, ms": without,
            "step with it, ms": with_it,
            "added, % of a step": added,
        }
        print(
            f"{name}: {without:.1f} ms a step without the recorder (median), {with_it:.1f} ms with"
        )
        print(f"  added: {_range(added)}")
        if device.type == "cpu":
            inside_share = spread(own[:, i].tolist())
            result[name]["inside its own calls, % of a step"] = inside_share
            most = "at most " if name == "processor" else ""
            print(f"  inside its own calls: {most}{_range(inside_share)}")
    finish([result], given.json)


def _range(values: dict) -> str:
    low, high = values["quartiles"]
    return f"{values['median']:+.2f} % of a step (median; quartiles {low:+.2f}, {high:+.2f})"


if __name__ == "__main__":
    main()
