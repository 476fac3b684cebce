"""PyTorch's side of peers.py: the same network, from the same weights, in two steps.

Imported only where PyTorch and pytorch_optimizer are installed.
"""

import jax
import numpy as np
import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer import utils
from torch import nn

from benchmarks.accuracy.peers_jobs import Job
from benchmarks.lib import training
from benchmarks.lib.data import Examples
from benchmarks.lib.tasks import Task


class TorchTraining:
    """The same network from the same weights, the two steps as its README has them."""

    def __init__(self, sam: bool, job: Job, seed: int, data: Examples):
        self.done = 0
        self.images, self.labels = self.tensors(data)
        network = training.initial(job.task)(jax.random.key(seed), data.images[:1])
        self.model = torch_model(job.task, network.params)
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim >= 2]}
            | {"weight_decay": job.settings.decay},
            {"params": [p for p in self.model.parameters() if p.ndim < 2]}
            | {"weight_decay": 0.0},
        ]
        options = {"lr": job.settings.lr, "momentum": training.MOMENTUM}
        self.sam = sam
        if self.sam:
            self.optimizer = pytorch_optimizer.SAM(
                groups, torch.optim.SGD, rho=job.settings.rho, **options
            )
        else:
            self.optimizer = torch.optim.SGD(groups, **options)
        schedule = training.warm_up_and_cosine(job.settings.lr, job.steps)
        self.rates = np.asarray(jax.vmap(schedule)(np.arange(job.steps))).tolist()

    def tensors(self, data: Examples):
        images = np.ascontiguousarray(np.asarray(data.images).transpose(0, 3, 1, 2))
        labels = np.asarray(data.labels, np.int64)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def loss(self, rows):
        logits = self.model(self.images[rows])
        return torch.nn.functional.cross_entropy(logits, self.labels[rows])

    def step(self, rows: np.ndarray) -> None:
        rows = torch.from_numpy(rows)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[self.done]
        self.done = (self.done + 1) % len(self.rates)
        self.loss(rows).backward()
        if self.sam:
            self.optimizer.first_step(zero_grad=True)
            utils.disable_running_stats(self.model)
            self.loss(rows).backward()
            utils.enable_running_stats(self.model)
            self.optimizer.second_step(zero_grad=True)
        else:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def wait(self) -> None:
        """Nothing runs on: PyTorch's CPU steps are done when they return."""

    def in_float64(self) -> "TorchTraining":
        """The same start."""
        self.model.double()
        self.images = self.images.double()
        return self

    def kernels(self) -> list[np.ndarray]:
        """Of all layers, from the first to the last, laid out as Flax has them."""
        found = [p.detach().numpy() for p in self.model.parameters() if p.ndim >= 2]
        return [
            kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0)
            for kernel in found
        ]

    def accuracy(self, test: Examples) -> float:
        images, labels = self.tensors(test)
        self.model.eval()
        with torch.no_grad():
            right = self.model(images).argmax(-1) == labels
        return 100 * float(right.float().mean())


def torch_model(task: Task, params):
    """networks.Mlp or networks.ConvNet, with the weights that Flax drew."""
    layers, channels = [], 1
    if "Conv3x3_0" in params:
        for i, stride in enumerate(task.model.strides):
            kernel = np.asarray(params[f"Conv3x3_{i}"]["kernel"])
            out = kernel.shape[-1]
            conv = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
            conv.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        layers += [nn.AdaptiveAvgPool2d(1)]
    layers += [nn.Flatten()]
    dense = [
        params[f"Dense_{i}"]["kernel"]
        for i in range(len(params))
        if f"Dense_{i}" in params
    ]
    for i, kernel in enumerate(map(np.asarray, dense)):
        linear = nn.Linear(*kernel.shape)
        linear.weight.data = torch.tensor(kernel.T.copy())
        linear.bias.data.zero_()
        layers += [linear] + [nn.ReLU()] * (i < len(dense) - 1)
    return nn.Sequential(*layers)
