"""Functions that run on two gloo processes at once."""

import torch
from peers import adapted_peers, peer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mim4dd
import mim4dd.adapters
import mim4dd.adapters.inf_cl
import mim4dd.adapters.lightly
import mim4dd.adapters.open_clip


class _Contrast(nn.Module):
    """MoCo's step, with the queue in the model that is trained."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.queue = mim4dd.KeyQueue(num_keys=12, dimension=3)

    def forward(self, images, key):
        loss = mim4dd.info_nce(self.encoder(images), key, negative_keys=self.queue.keys)
        self.queue.push(key)
        return loss


def queue_within_ddp(rank):
    """The queue after a push before DDP and three of its steps, and all that was pushed."""
    torch.manual_seed(rank)
    model = _Contrast()
    pushed = [torch.randn(4, 3)]
    model.queue.push(pushed[0])
    parallel = DistributedDataParallel(model)
    for _ in range(3):
        pushed.append(torch.randn(4, 3))
        parallel(torch.randn(4, 3), pushed[-1]).backward()
    return {"keys": model.queue.keys, "pushed": torch.cat(pushed), "filled": len(model.queue)}


def distributed_metric_losses(rank):
    """Losses and gradients by pytorch-metric-learning's wrapper of ours and of the peer's."""
    sides = mim4dd.adapters.pytorch_metric_learning, adapted_peers()["pytorch_metric_learning"]
    batches, labels = _batches(rank)
    others, other_labels = _batches(1 - rank)
    # In "efficient" the peer takes row i of ref_emb for embedding i itself, which it is not.
    ref_emb = torch.cat([batches[1], others[1].detach()])
    ref_labels = torch.cat([labels[1], other_labels[1]])
    ref = {"ref_emb": batches[1], "ref_labels": labels[1]}
    mask = {"enqueue_mask": torch.arange(6) < 4}
    results = {}
    for name in ("NTXentLoss", "SupConLoss"):
        pair = [getattr(side, name)(0.3) for side in sides]
        memories = [
            side.CrossBatchMemory(loss, 4, 20) for side, loss in zip(sides, pair, strict=True)
        ]
        for case, losses, efficient, options in (
            ("plain", pair, False, {}),
            ("ref", pair, False, ref),
            ("efficient", pair, True, {}),
            ("memory", memories, False, {}),
            ("mask", memories, False, mask),
        ):
            results[name, case] = [
                _value_and_gradients(
                    side.DistributedLossWrapper(loss, efficient), batches, labels, options
                )
                for side, loss in zip(sides, losses, strict=True)
            ]
        wrapper = sides[0].DistributedLossWrapper(pair[0], efficient=True)
        plain = pair[1](batches[0], labels[0], None, ref_emb, ref_labels)
        results[name, "efficient with ref"] = [
            _value_and_gradients(wrapper, batches[:1], labels[:1], ref),
            [2 * plain.detach(), *torch.autograd.grad(2 * plain, batches[:1])],
        ]
    return results


def _batches(rank):
    generator = torch.Generator().manual_seed(rank)
    batches = [torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
    labels = [torch.randint(3, (6,), generator=generator) for _ in range(2)]
    return [batch.requires_grad_() for batch in batches], labels


def _value_and_gradients(loss, batches, labels, options):
    """Of the sum over the batches, one after another."""
    values = [loss(batch, each, **options) for batch, each in zip(batches, labels, strict=False)]
    return [sum(values).detach(), *torch.autograd.grad(sum(values), batches)]


def gathering_losses(rank):
    """Losses and gradients of lightly's and open_clip's distributed losses, of ours and theirs."""
    peers = adapted_peers()
    generator = torch.Generator().manual_seed(rank)
    features = [
        nn.functional.normalize(torch.randn(5, 4, dtype=torch.float64, generator=generator))
        for _ in range(2)
    ]
    results = {}

    def both(name, ours, theirs, *arguments):
        results[name] = []
        for loss in (ours, theirs):
            leaves = [each.clone().requires_grad_() for each in (*features, *arguments)]
            value = loss(*leaves)
            gradients = torch.autograd.grad(value, leaves)
            of_scale = sum(gradients[2:], torch.zeros(()))
            torch.distributed.all_reduce(of_scale)  # DDP averages it
            results[name].append([value.detach(), *gradients[:2], of_scale])

    scale = torch.tensor(7.0, dtype=torch.float64)
    for local_loss in (False, True):
        options = {"local_loss": local_loss, "gather_with_grad": True, "rank": rank}
        sides = mim4dd.adapters.open_clip, peers["open_clip"]
        losses = [side.ClipLoss(**options, world_size=2) for side in sides]
        both(f"ClipLoss {local_loss}", *losses, scale)
    bias = torch.tensor(-3.0, dtype=torch.float64)
    for way in (None, "gather"):
        losses = [side.SigLipLoss(rank=rank, world_size=2, dist_impl=way) for side in sides]
        both(f"SigLipLoss {way}", *losses, scale, bias)
    sides = mim4dd.adapters.lightly, peers["lightly"]
    both("NTXentLoss", *(side.NTXentLoss(0.3, gather_distributed=True) for side in sides))
    return results


def ring_losses(rank):
    """Losses and gradients of both of Inf-CL's, and of its loss on a ring, which needs no GPU."""
    ours, theirs = mim4dd.adapters.inf_cl, peer("inf_cl.ring")
    generator = torch.Generator().manual_seed(rank)
    query, key = (
        nn.functional.normalize(torch.randn(count, 6, generator=generator)) for count in (5, 7)
    )
    index = torch.randint(7, (5,), generator=generator)
    results = {}
    for case, labels in (("own", None), ("by index", index)):
        results[case] = []
        for loss in (theirs.cal_ring_loss, ours.cal_ring_loss, ours.cal_inf_loss):
            leaves = [each.clone().requires_grad_() for each in (query, key, torch.tensor(7.0))]
            value = loss(leaves[0], leaves[1], labels, leaves[2], head_dim=6)
            *gradients, of_scale = torch.autograd.grad(value, leaves)
            if loss is not theirs.cal_ring_loss:  # which adds that of the scale up by itself
                torch.distributed.all_reduce(of_scale)
            results[case].append([value.detach(), *gradients, of_scale])
    return results
