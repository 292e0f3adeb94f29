"""BN recalibration gives the statistics of its images, whatever the batches."""

import torch
from torch import nn

from detofa.supernet.recalibrate import recalibrate


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.1, 4.0, count)[:, None, None, None]  # every image is different
    return torch.randn(count, 3, 8, 8, generator=generator) * scale + scale


def test_statistics_are_those_of_all_images_pooled_also_with_a_small_last_batch() -> None:
    norm = nn.BatchNorm2d(3)
    data = images(10)
    recalibrate(nn.Sequential(norm), data, batch_size=4)
    pooled = data.double().transpose(0, 1).flatten(1)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean.double(), pooled.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        norm.running_var.double(), pooled.var(1, correction=0), rtol=1e-5, atol=1e-6
    )


def test_the_start_does_not_matter_and_the_settings_come_back() -> None:
    data = images(6)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
        for module in net:
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.get_buffer("running_mean"), 7.0 * seed)
        net[0].load_state_dict({k: torch.full_like(v, 0.1) for k, v in net[0].state_dict().items()})
        net.train()
        recalibrate(net, data, batch_size=3)
        assert not net.training
        assert net[1].momentum == 0.1
        results.append(net(data))
    torch.testing.assert_close(results[0], results[1])


def test_recalibrated_outputs_are_normalised() -> None:
    data = images(8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        before = net.eval()(data)
        recalibrate(net, data, batch_size=8)
        after = net(data)
    assert before.transpose(0, 1).flatten(1).mean(1).abs().max() > 0.05
    assert after.transpose(0, 1).flatten(1).mean(1).abs().max() < 1e-4
    torch.testing.assert_close(
        after.transpose(0, 1).flatten(1).std(1), torch.ones(4), rtol=1e-2, atol=1e-2
    )
