"""Preprocessing: what it computes, what it decides by itself, what it refuses."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnx_igpc.data.preprocessing import CorruptImageError, Preprocessing
from onnx_igpc.errors import DataError, MissingExtraError, UsageError
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.report.typed_json import to_values

F32 = np.dtype(np.float32)


def spec(*shape: int | str | None, dtype: str = "f4") -> InputSpec:
    return InputSpec("x", np.dtype(dtype), shape)


def image_of(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


PIXELS = np.arange(4 * 5 * 3).reshape(4, 5, 3)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_value_is_scaled_then_normalized_in_the_order_of_color(layout: str, color: str) -> None:
    how = Preprocessing(
        scale=0.5, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), layout=layout, color=color
    )
    values = how.apply(image_of(PIXELS))
    pixels = PIXELS if color == "rgb" else PIXELS[:, :, ::-1]
    want = (pixels * 0.5 - [1, 2, 3]) / [1, 2, 4]
    if layout == "nchw":
        want = want.transpose(2, 0, 1)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, want, rtol=1e-6)


def test_defaults_are_decided_by_the_input_and_recorded() -> None:
    assert Preprocessing().resolved(spec("n", 3, 8, 8)) == Preprocessing(
        resize=8, crop=8, scale=1 / 255, layout="nchw", color="rgb"
    )
    assert Preprocessing().resolved(spec(1, 6, 8, 1)) == Preprocessing(
        resize=(6, 8), scale=1 / 255, layout="nhwc", color="gray"
    )
    assert Preprocessing().resolved(spec(1, 8, 8, 3, dtype="u1")).scale == 1.0
    assert Preprocessing().resolved(spec(1, 8, 8, 3, dtype="i1")).mean == (128.0,)
    dynamic = Preprocessing().resolved(spec("n", 3, "h", "w"))
    assert (dynamic.resize, dynamic.crop) == (None, None)
    assert Preprocessing(resize=10).resolved(spec("n", 3, 6, 8)).crop == (6, 8)


@given(
    resize=st.none() | st.integers(1, 9) | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    mean=st.lists(st.floats(-9, 9), min_size=1, max_size=3),
    scale=st.none() | st.floats(0.001, 9),
    layout=st.sampled_from([None, "nchw", "nhwc"]),
)
def test_json_form_round_trips(resize: Any, mean: list[float], scale: Any, layout: Any) -> None:
    how = Preprocessing(resize=resize, mean=tuple(mean), scale=scale, layout=layout)
    assert Preprocessing.from_dict(json.loads(json.dumps(to_values(how)))) == how


@given(
    height=st.integers(1, 40), width=st.integers(1, 40), resize=st.integers(1, 30), data=st.data()
)
def test_short_side_is_resized_and_the_centre_cropped(
    height: int, width: int, resize: int, data: st.DataObject
) -> None:
    crop = data.draw(st.integers(1, resize))
    how = Preprocessing(resize=resize, crop=crop, layout="nchw", color="rgb", scale=1.0)
    assert how.apply(Image.new("RGB", (width, height))).shape == (3, crop, crop)


def test_crop_takes_the_centre_and_keeps_pixels_of_the_right_size() -> None:
    how = Preprocessing(resize=4, crop=(4, 3), layout="nhwc", color="rgb", scale=1.0)
    np.testing.assert_array_equal(how.apply(image_of(PIXELS)), PIXELS[:, 1:4])


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        (("n", 3, 8, 8), Preprocessing(resize=9, crop=9), "8 x 8 pixels"),
        (("n", 4, 8, 8), Preprocessing(), "4 channels, rgb images have 3"),
        (("n", 3, 8, 8), Preprocessing(color="gray"), "3 channels, gray images have 1"),
        (("n", 8, 8, 3), Preprocessing(layout="nchw"), "8 channels"),
        (("n", 10), Preprocessing(), "takes no images"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    shape: tuple[int | str | None, ...], how: Preprocessing, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        how.resolved(spec(*shape))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"std": [0.0]}, "std must not be 0"),
        ({"scale": -1}, "scale"),
        ({"layout": "chw"}, "layout"),
        ({"color": "hsv"}, "color"),
        ({"resize": 0}, "resize"),
        ({"crop": [1, 2, 3]}, "crop"),
        ({"mean": "a"}, "mean"),
        ({"size": 3}, "unknown key 'size'"),
    ],
)
def test_unusable_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing.from_dict(values)
    with pytest.raises(UsageError, match="1 or 3 values"):
        Preprocessing(mean=(1.0, 2.0)).resolved(spec(1, 3, 8, 8))


def test_image_smaller_than_the_crop_is_refused() -> None:
    how = Preprocessing(crop=8, layout="nchw", color="rgb", scale=1.0)
    with pytest.raises(DataError, match="4 x 5 pixels is smaller than the crop 8 x 8"):
        how.apply(image_of(PIXELS))


def test_integers_are_rounded_and_clipped_and_halves_stay_halves() -> None:
    file = encoded(image_of(PIXELS))
    int8 = Preprocessing().resolved(spec(1, 4, 5, 3, dtype="i1")).load(file, np.dtype("i1"))
    np.testing.assert_array_equal(int8, PIXELS.astype(int) - 128)
    how = Preprocessing(scale=100.0).resolved(spec(1, 4, 5, 3, dtype="u1"))
    assert how.load(file, np.dtype("u1")).max() == 255
    assert Preprocessing().resolved(spec(1, 4, 5, 3)).load(file, np.dtype("f2")).dtype == np.float16


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "L", "1"])
def test_other_modes_become_rgb_or_gray(mode: str) -> None:
    file = encoded(Image.new(mode, (6, 6)), "TIFF")
    assert Preprocessing().resolved(spec(1, 3, 6, 6)).load(file, F32).shape == (3, 6, 6)
    assert Preprocessing().resolved(spec(1, 1, 6, 6)).load(file, F32).shape == (1, 6, 6)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"no image", encoded(image_of(PIXELS))[:45], encoded(Image.new("I;16", (6, 6)))],
)
def test_damaged_images_are_corrupt(damaged: bytes) -> None:
    with pytest.raises(CorruptImageError):
        Preprocessing().resolved(spec(1, 3, 6, 6)).load(damaged, F32)


@pytest.mark.parametrize("limit", [10, 15])
def test_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Pillow only warns between one and two times its limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="decompression bomb"):
        Preprocessing().resolved(spec(1, 3, 4, 5)).load(encoded(image_of(PIXELS)), F32)


def test_missing_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'onnx-igpc\[images\]'"):
        Preprocessing().resolved(spec(1, 3, 4, 5)).load(b"", F32)
