"""Train the small digit classifier whose features define the Frechet distance of generated digits.

    asd-policy images classifier --data mnist.npz --out checkpoints/digits/features.safetensors

The file also holds the statistics of the data's features, over all images. The accuracy is measured on a tenth of the
images, held out from training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from asd_policy.cli import COMPLETE
from asd_policy.cli.progress import counter, progress
from asd_policy.data.digits import Digits
from asd_policy.images.frechet import DigitClassifier, accuracy, frechet_distance, save_reference
from asd_policy.threads import check_threads
from asd_policy.training.files import write_checkpoint

SHIFT = 2  # largest random shift of a training image, in pixels


@dataclass(frozen=True)
class Arguments:
    """The data, the output file and the training settings."""

    data: Path
    """An .npz file with images (N, 28, 28) uint8 and labels (N,), or torchvision's root folder of MNIST."""
    out: Path
    """File to write: the classifier's weights and the reference statistics."""
    steps: int = 1500
    """Updates."""
    batch_size: int = 128
    """Images in a batch."""
    seed: int = 0
    """Seed of the weights, the batches and the held-out images."""
    threads: int = 1
    """CPU threads of torch. Two threads on a busy core wait for each other, which is far slower than one."""


def fit(images: Tensor, labels: Tensor, arguments: Arguments, done: Callable[[], object]) -> DigitClassifier:
    """A trained classifier, in inference mode; `done` is called after each update."""
    generator = torch.Generator().manual_seed(arguments.seed)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)  # layers have no generator argument
        classifier = DigitClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=arguments.steps)
    for _ in range(arguments.steps):
        rows = torch.randint(len(labels), (arguments.batch_size,), generator=generator)
        down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
        logits = classifier.logits(images[rows].roll((down, right), dims=(2, 3)))
        loss = nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        done()
    return classifier.eval()


def main(arguments: Arguments) -> int:
    """Train the classifier and write the file."""
    console = Console()
    check_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    digits = Digits.read(arguments.data)
    images, labels = digits.padded(), digits.labels
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(arguments.seed))
    held_back, rest = order[: len(order) // 10], order[len(order) // 10 :]
    with progress(console) as shown:
        done = counter(shown, "training", arguments.steps)
        classifier = fit(images[rest], labels[rest], arguments, done)
    console.print(f"accuracy on the {len(held_back)} images held back: ", end="")
    console.print(f"{accuracy(classifier, images[held_back], labels[held_back]):.4f}")

    metric = frechet_distance(classifier)
    with torch.inference_mode():
        for some in images.split(500):
            metric.update(some, real=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(arguments.out, lambda path: save_reference(path, metric))
    console.print(f"Wrote {arguments.out}")
    return COMPLETE
