"""Generated queries and keys that cluster like those of a video: drifting regions with gradients and noise."""

import torch
from torch import Tensor

REGIONS = 40
PROTOTYPE, WAVE, NOISE = 0.4, 0.4, 0.55  # at τ = 1.0 on a 40x60 grid: some hundred leaders, some ten clusters


def generated_features(
    frame_count: int, height: int, width: int, *, heads: int = 8, depth: int = 48, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Queries and keys, each (T, N, heads, d) float32; the same for the same arguments.

    A frame's patches belong to the nearest of some drifting points. A token is its region's prototype, plus waves
    across the frame and in time (things change from one end to the other), plus its own noise. Two random
    matrices map it to queries and keys, which are nearly the same, as trained ones are.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    start, speed = torch.rand(REGIONS, 2, generator=generator), normal(REGIONS, 2) * 0.01
    prototypes = normal(REGIONS, heads, depth) * PROTOTYPE
    waves = normal(12, heads, depth) * WAVE
    frequency, phase = normal(12, 3) * torch.tensor([6.0, 6.0, 0.1]), torch.rand(12, generator=generator) * 6.28
    mix = normal(2, heads, depth, depth) / depth**0.5
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    place = torch.stack([y, x], -1).view(-1, 2)
    frames = []
    for frame in range(frame_count):
        nearest = torch.cdist(place, (start + frame * speed) % 1).argmin(1)
        moment = torch.cat([place, torch.full((len(place), 1), float(frame))], 1)
        wave = torch.einsum("na,ahd->nhd", torch.sin(moment @ frequency.T + phase), waves)
        frames.append(prototypes[nearest] + wave + NOISE * normal(height * width, heads, depth))
    tokens = torch.stack(frames)  # (T, N, heads, d)
    queries = torch.einsum("tnhd,hde->tnhe", tokens, mix[0])
    keys = torch.einsum("tnhd,hde->tnhe", tokens, 0.9 * mix[0] + 0.1 * mix[1])
    return queries, keys


def textured_frames(count: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Textured discs that drift over a textured ground, uint8, (T, H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)

    def texture() -> Tensor:
        noise = [torch.rand(1, 3, height // n, width // n, generator=generator) for n in (80, 20, 4)]
        layers = [torch.nn.functional.interpolate(values, (height, width), mode="bilinear") for values in noise]
        return (0.6 * layers[0] + 0.25 * layers[1] + 0.15 * layers[2])[0]  # (3, H, W)

    ground, surfaces = texture(), [texture() for _ in range(8)]
    start, speed = torch.rand(8, 2, generator=generator), torch.randn(8, 2, generator=generator) * 0.01
    radius = 0.08 + 0.12 * torch.rand(8, generator=generator)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, width / height, width), indexing="ij")
    frames = []
    for frame in range(count):
        picture = ground.clone()
        for surface, place, pace, size in zip(surfaces, start, speed, radius, strict=True):
            top, left = (place + frame * pace).tolist()
            inside = (y - top) ** 2 + (x - left * width / height) ** 2 < size**2
            picture[:, inside] = surface[:, inside]
        frames.append((picture.permute(1, 2, 0) * 255).to(torch.uint8))
    return torch.stack(frames)
