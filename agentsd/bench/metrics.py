"""How far pictures or latents are from a reference, sample by sample (pure functions)."""

from torch import Tensor

_WINDOW = 11  # side of SSIM's Gaussian window, in pixels (Wang et al. 2004)


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture, in dB: `-10 log10(mean squared error)`.

    Args:
        pictures: Pictures, [B, 3, H, W], in [0, 1].
        reference: Pictures to compare with, of the same shape.

    Returns:
        Decibels, [B]; infinite where the two are equal.

    Raises:
        ValueError: If the shapes differ, are not [B, 3, H, W], or a value lies outside [0, 1].

    Example:
        >>> psnr(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 8, 8), 0.5)).round(decimals=3)
        tensor([20.])
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    _check_pictures(pictures, reference)
    decibels: Tensor = peak_signal_noise_ratio(
        pictures.float(), reference.float(), data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    return decibels


def ssim(pictures: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of each picture: Wang et al. 2004, Gaussian window of 11 pixels, sigma 1.5.

    The mean goes over the whole picture, mirrored at its borders (torchmetrics), not only over whole windows.

    Args:
        pictures: Pictures, [B, 3, H, W], in [0, 1], H and W at least 11.
        reference: Pictures to compare with, of the same shape.

    Returns:
        Similarity, [B]; 1 where the two are equal.

    Raises:
        ValueError: If the shapes differ, are not [B, 3, H, W] of at least 11 x 11, or a value lies outside [0, 1].

    Example:
        >>> pictures = torch.rand(2, 3, 16, 16)
        >>> ssim(pictures, pictures)
        tensor([1., 1.])
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pictures(pictures, reference)
    if min(pictures.shape[-2:]) < _WINDOW:
        raise ValueError(
            f"pictures of {pictures.shape[-2]}x{pictures.shape[-1]} are smaller than SSIM's window of "
            f"{_WINDOW}x{_WINDOW} pixels; compare larger ones."
        )
    similarity: Tensor = structural_similarity_index_measure(
        pictures.float(), reference.float(), data_range=1.0, reduction="none"
    )
    return similarity


def relative_l2(latents: Tensor, reference: Tensor) -> Tensor:
    """Return the distance of each sample from its reference as a share of the reference: `|x - r| / |r|`.

    Args:
        latents: Samples, [B, ...].
        reference: Samples to compare with, of the same shape.

    Returns:
        Relative distances, [B].

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> relative_l2(torch.full((1, 4, 2, 2), 1.5), torch.ones(1, 4, 2, 2))
        tensor([0.5000])
    """
    _check_shapes("latents", latents, reference)
    one, other = latents.float().flatten(1), reference.float().flatten(1)
    distance: Tensor = (one - other).norm(dim=1) / other.norm(dim=1)
    return distance


def _check_shapes(name: str, one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(f"{name} has shape {tuple(one.shape)}, the reference {tuple(other.shape)}: make them equal.")


def _check_pictures(pictures: Tensor, reference: Tensor) -> None:
    _check_shapes("pictures", pictures, reference)
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(f"pictures has shape {tuple(pictures.shape)}; it must be [B, 3, H, W].")
    for name, values in (("pictures", pictures), ("reference", reference)):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} holds values from {low:g} to {high:g}; they must lie in [0, 1].")
