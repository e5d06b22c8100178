"""The application in this process: every output and every refusal."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pycocotools import mask as run_lengths

from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import decode_png
from segkit.inference.export import export_bundle
from segkit.inference.predictor import Predictor
from segkit.models.builder import build_model
from segkit.models.bundle import save_bundle
from segkit.models.steps import open_steps
from segkit.ops.sizes import Spacing
from segkit.serving.app import build_app
from segkit.serving.limits import Limits
from tests.inference.test_predictor import model
from tests.scenes import FORMATS, scene
from tests.serving.servers import SIZE_HW, client_of, encoded, png, predictor_of

IMAGE = scene(1, SIZE_HW)[0]


@pytest.fixture(scope="module")
def client():
    with client_of(
        predictor_of("overlapping"), name="a model", limits=Limits(max_bytes=2**20, max_pixels=10_000)
    ) as made:
        yield made


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    sentence = response.json()["error"]
    assert sentence.endswith((".", "?"))
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


# Outputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_every_output_of_every_format_is_what_the_predictor_says(tmp_path, kind):
    predictor = predictor_of(kind)
    (tmp_path / "mask.png").write_bytes(png())
    predictor.predict_files([tmp_path / "mask.png"], tmp_path / "out")
    written = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.png")}
    planes, probs = predictor.predict(IMAGE), predictor.probabilities(IMAGE)
    with client_of(predictor) as client:
        answers = {
            output: client.post("/predict", params={"output": output}, content=png())
            for output in ("png", "zip", "rle", "probabilities")
        }
    assert [answer.status_code for answer in answers.values()] == [200] * 4
    with zipfile.ZipFile(io.BytesIO(answers["zip"].content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == written
    if list(written) == ["mask.png"]:
        assert answers["png"].content == written["mask.png"]
    target = torch.from_numpy(planes.transpose(2, 0, 1).astype(np.int32))[None]
    for found, held in zip(
        answers["rle"].json()["classes"], predictor.model.format.expand(target)[0].numpy(), strict=True
    ):
        assert np.array_equal(run_lengths.decode(found["segmentation"]), held)
    stored = np.load(io.BytesIO(answers["probabilities"].content))
    assert np.allclose(stored["probabilities"], probs, atol=1e-3)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "image/png"),
        ("application/json", "application/json"),
        ("image/*;q=0.5, application/zip", "application/zip"),
        ("application/*;q=0.4, image/png;q=0.1", "application/zip"),
        ("text/html, application/x-npz;q=0.9, */*;q=0.1", "application/x-npz"),
        ("*/*, image/png;q=0", "application/zip"),
        ("image/png;q=nonsense, application/json;q=0.2", "application/json"),
    ],
)
def test_the_client_says_what_it_accepts(client, accept, media_type):
    answer = client.post("/predict", content=png(), headers={"Accept": accept})
    assert answer.headers["content-type"] == media_type


def test_the_query_is_stronger_than_what_is_accepted(client):
    answer = client.post("/predict?output=rle", content=png(), headers={"Accept": "image/png"})
    assert answer.json()["size"] == list(SIZE_HW)


def test_thresholds_of_the_query(client):
    def areas(threshold):
        answer = client.post("/predict", content=png(), params={"output": "rle", "threshold": threshold})
        return [found["area"] for found in answer.json()["classes"]]

    assert areas("0.001,0.999") == [SIZE_HW[0] * SIZE_HW[1], 0]
    assert areas("0.999,0.001") == [0, SIZE_HW[0] * SIZE_HW[1]]
    assert areas("0.5") == areas("0.5,0.5")


def test_none_is_refused_by_a_codec_that_cannot_hold_it_and_written_by_others():
    with client_of(predictor_of("one_vs_rest")) as client:
        refused = client.post("/predict", content=png(), params={"threshold": "0.999"})
        sentence = error_of(refused, 422)
        assert "ignored_values" in sentence
        assert "/tmp" not in sentence
        answer = client.post("/predict", content=png(), params={"threshold": "0.999", "output": "rle"})
        assert [found["area"] for found in answer.json()["classes"]] == [0, 0, 0]


def test_forms_and_raw_bodies_are_answered_alike(client):
    raw = client.post("/predict", content=png())
    for files in (
        {"image": ("C:\\a\\..\\../etc/passwd.png", png(), "image/png")},
        {"other": ("b", png()), "x": (None, "1")},
    ):
        form = client.post("/predict", files=files)
        assert (form.status_code, form.content) == (200, raw.content), form.text


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".jp2", ".ppm"])
def test_all_kinds_of_files_are_read_as_where_files_are_predicted(tmp_path, suffix):
    predictor = predictor_of("exclusive")
    data = encoded(IMAGE, suffix)
    (tmp_path / f"mask{suffix}").write_bytes(data)
    predictor.predict_files([tmp_path / f"mask{suffix}"], tmp_path / "out")
    with client_of(predictor) as client:
        assert client.post("/predict", content=data).content == (tmp_path / "out" / "mask.png").read_bytes()


def test_the_orientation_that_a_camera_noted_is_applied(client):
    note = Image.Exif()
    note[274] = 6
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "jpeg", exif=note)
    assert client.post("/predict?output=rle", content=file.getvalue()).json()["size"] == [SIZE_HW[1], SIZE_HW[0]]


@pytest.mark.parametrize("normalize", ["image", "volume"])
def test_images_are_normalised_as_the_model_says(normalize):
    network = model(FORMATS["binary"], in_channels=4)
    network.reading = ImageReading(normalize=normalize)
    bands = np.random.default_rng(0).integers(0, 60000, (*SIZE_HW, 4)).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, bands)
    predictor = Predictor(network, open_codec("index_png", network.format), device="cpu")
    scaled = ((bands - bands.mean((0, 1))) / bands.std((0, 1))).astype(np.float32)
    expected = torch.from_numpy(scaled.transpose(2, 0, 1))[None]
    with torch.inference_mode(), client_of(predictor) as client:
        planes = network.format.decode(network(expected))[0, 0].numpy()
        answer = client.post("/predict", content=file.getvalue())
    stored = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert (stored == planes).mean() > 0.999


def test_a_model_that_works_at_a_spacing_asks_for_it():
    with client_of(predictor_of("binary", resize=Spacing(0.5, 0.5))) as client:
        assert "spacing_mm=ROW,COLUMN" in error_of(client.post("/predict", content=png()), 422)
        answer = client.post("/predict?spacing_mm=0.5,1&output=rle", content=png())
        assert answer.json()["size"] == list(SIZE_HW)
        vast = client.post("/predict?spacing_mm=100,100", content=png())
        assert "At the size that the model works at" in error_of(vast, 413)
        assert "spacing_mm does not fit" in error_of(client.post("/predict?spacing_mm=1e6,1e6", content=png()), 422)


def test_a_view_is_the_picture_and_the_probabilities(client):
    seen = np.load(io.BytesIO(client.post("/view", content=png()).content))
    assert np.array_equal(seen[:3].transpose(1, 2, 0), IMAGE)
    expected = predictor_of("overlapping").probabilities(IMAGE)
    assert np.abs(seen[3:] / 255 - expected).max() <= 0.5 / 255 + 1e-5
    assert np.load(io.BytesIO(client.post("/view?side=20", content=png()).content)).shape == (5, 15, 20)


def test_masks_are_post_processed_at_any_threshold_as_where_files_are_predicted():
    predictor = predictor_of("overlapping")
    plain = predictor.predict(IMAGE)
    predictor.model.postprocess = open_steps(["largest_component"], predictor.model.format)
    expected = predictor.predict(IMAGE)
    assert expected.sum() < plain.sum()
    with client_of(predictor) as client:
        assert client.get("/health").json()["model"]["postprocess"] == [{"name": "largest_component"}]
        # The second is decoded from logits, at thresholds that are nearly the same.
        for query in ("", "&threshold=0.5000001"):
            answer = client.post(f"/predict?output=rle{query}", content=png()).json()
            areas = [found["area"] for found in answer["classes"]]
            assert areas == pytest.approx(expected.sum((0, 1)).tolist(), abs=2)


def test_answers_of_several_views_are_averaged_as_where_files_are_predicted():
    network = model(FORMATS["binary"])
    codec = open_codec("index_png", FORMATS["binary"])
    single, flipped = (Predictor(network, codec, device="cpu", tta=views) for views in (None, "flips"))
    with client_of(flipped) as client:
        stored = np.load(io.BytesIO(client.post("/predict?output=probabilities", content=png()).content))
    assert np.allclose(stored["probabilities"], flipped.probabilities(IMAGE), atol=1e-3)
    assert not np.allclose(stored["probabilities"], single.probabilities(IMAGE), atol=1e-3)


def test_an_exported_file_is_served_like_its_bundle(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    format = FORMATS["overlapping"]
    codec = open_codec("bit_planes", format)
    network = build_model("unet", "tu-test_resnet", format, weights=None, encoder_depth=3, decoder_channels=[16, 8, 8])
    export_bundle(save_bundle(network, tmp_path / "m", codec), tmp_path / "m.onnx")
    answers = []
    for path in (tmp_path / "m", tmp_path / "m.onnx"):
        with client_of(Predictor(path, device="cpu")) as client:
            asked = [client.post(f"/predict?threshold={t}", content=png(n)) for t in (0.4, 0.5) for n in (1, 2)]
            answers.append(np.stack([decode_png(answer.content).pixels for answer in asked]))
    assert len(np.unique(answers[0])) > 2
    # Another runtime adds up in another order.
    assert (answers[0] == answers[1]).mean() > 0.999


def test_an_image_above_the_size_of_windows_is_answered_as_where_files_are_predicted(monkeypatch):
    for module in ("segkit.inference.tiling", "segkit.serving.engine"):
        monkeypatch.setattr(f"{module}.WHOLE_PIXELS", 2000)
        monkeypatch.setattr(f"{module}.DEFAULT_TILE", 32)
    predictor = predictor_of("exclusive")
    seen = []
    whole = predictor.model.coarse_logits
    predictor.model.coarse_logits = lambda images: (seen.append(tuple(images.shape[-2:])), whole(images))[1]
    with client_of(predictor) as client:
        answer = client.post("/predict", content=png())
    assert set(seen) == {(32, 32)}
    assert np.array_equal(decode_png(answer.content).pixels, predictor.predict(IMAGE)[..., 0])


# Refusals ----------------------------------------------------------------------------------------------


def huge_png(height, width):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * (height * (width + 1)), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff_of(image):
    file = io.BytesIO()
    tifffile.imwrite(file, image, compression="zlib")
    return file.getvalue()


NIFTI = b"\0" * 344 + b"n+1\0" + b"\0" * 100
DICOM = b"\0" * 128 + b"DICM" + b"\0" * 100


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "empty"),
        (png()[:-20], 400, "cut short"),
        (encoded(IMAGE, ".jpg")[:500], 400, "cut short"),
        (png()[:60] + bytes([png()[60] ^ 1]) + png()[61:], 400, "damaged"),
        (b"II*\0" + b"\xff" * 100, 400, "TIFF"),
        (b"GIF89a" + b"\0" * 30, 400, "GIF"),
        (b"hello, this is no image", 415, "no image"),
        (b"%PDF-1.7 ...", 415, "no image"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 40, 415, "no image"),
        (NIFTI, 415, "NIfTI volume.*segkit predict"),
        (b"\x1f\x8b\x08" + b"\0" * 30, 415, "gzip.*NIfTI"),
        (DICOM, 415, "DICOM"),
        (huge_png(200, 100), 413, "200x100.*0.01 megapixels"),
        (tiff_of(np.zeros((100, 200, 3), np.uint8)), 413, "100x200"),
        (b"x" * (2**20 + 1), 413, "1 MiB"),
        (tiff_of(np.zeros((20, 30, 5), np.uint8)), 422, "5 bands.*takes 3"),
        (tiff_of(np.full((20, 30, 3), np.nan, np.float32)), 422, "NaN"),
    ],
)
@pytest.mark.parametrize("how", ["raw", "form"])
def test_what_is_no_good_image_is_refused_in_one_sentence(client, content, status, words, how):
    sent = {"content": content} if how == "raw" else {"files": {"image": ("a.png", content, "image/png")}}
    assert re.search(words, error_of(client.post("/predict", **sent), status))


def test_pixels_are_counted_before_any_is_decoded(client, monkeypatch):
    monkeypatch.setattr("segkit.serving.app.decode_picture", lambda *_: pytest.fail("decoded"))
    assert client.post("/predict", content=huge_png(3000, 3000)).status_code == 413


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("output=pgn", 400, "no output 'pgn'.*`png`"),
        ("outptu=png", 400, "no option 'outptu'.*`output`"),
        ("output=png&output=rle", 400, "given twice"),
        ("threshold=a", 400, "expected numbers"),
        ("threshold=nan", 400, "expected numbers"),
        ("threshold=1.5", 422, "between 0 and 1"),
        ("threshold=0.1,0.2,0.3", 422, "3 thresholds for 2 classes"),
        ("spacing_mm=1", 400, "ROW,COLUMN"),
        ("spacing_mm=0,1", 400, "ROW,COLUMN"),
        ("side=10", 400, "no option 'side'"),
    ],
)
def test_what_cannot_be_asked_is_refused(client, query, status, words):
    assert re.search(words, error_of(client.post(f"/predict?{query}", content=png()), status))


@pytest.mark.parametrize("side", ["0", "-1", "9999999999999", "x", "4097"])
def test_views_of_any_size_are_refused(client, side):
    assert "1 to 4096" in error_of(client.post(f"/view?side={side}", content=png()), 400)


def test_other_types_of_bodies_and_answers_are_refused(client):
    assert "application/json" in error_of(client.post("/predict", json={"image": "..."}), 415)
    assert "text/html" in error_of(client.post("/predict", content=png(), headers={"Accept": "text/html"}), 406)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n\r\n--x--"),
        ("multipart/form-data; boundary=x", b"nothing of a form"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\na\r\n--x--\r\n'),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nabc',
        ),
        ("multipart/form-data; boundary=\xff", b"--\xff\r\n"),
    ],
)
def test_broken_forms_are_refused(client, kind, body):
    answer = client.post("/predict", content=body, headers={"Content-Type": kind.encode("latin-1")})
    assert "form" in error_of(answer, 400)


def test_two_files_are_refused(client):
    answer = client.post("/predict", files=[("image", ("a.png", png())), ("image", ("b.png", png()))])
    assert "Too many files" in error_of(answer, 400)


def test_other_addresses_and_methods_are_refused_in_json(client):
    assert "/predict" in error_of(client.get("/nothing/../../etc/passwd"), 404)
    assert "/predict" in error_of(client.get("/%2e%2e/page.js"), 404)
    answer = client.get("/predict")
    assert "POST" in error_of(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_failure_is_told_without_its_reason(monkeypatch):
    monkeypatch.setattr("segkit.serving.answers.mask_region", lambda held: 1 / 0)
    with client_of(predictor_of("binary")) as client:
        sentence = error_of(client.post("/predict?output=rle", content=png()), 500)
        assert "division" not in sentence
        # and the next one is answered
        assert client.post("/predict", content=png()).status_code == 200


def test_too_little_memory_on_the_device_is_the_fault_of_one_image(monkeypatch):
    predictor = predictor_of("binary")
    enough = type(predictor.model).coarse_logits

    def coarse_logits(self, images):
        if images.shape[-1] > 50:
            raise torch.OutOfMemoryError("out of memory")
        return enough(self, images)

    monkeypatch.setattr(type(predictor.model), "coarse_logits", coarse_logits)
    with client_of(predictor) as client:
        assert "more memory" in error_of(client.post("/predict", content=png()), 413)
        assert client.post("/predict", content=png(size_hw=(30, 40))).status_code == 200


def test_models_of_neighbouring_slices_are_refused_at_once():
    network = model(FORMATS["binary"], in_channels=3)
    network.reading = ImageReading(neighbours=1)
    with pytest.raises(ValueError, match=r"1 neighbours.*segkit predict"):
        build_app(Predictor(network, device="cpu"))


# Around ------------------------------------------------------------------------------------------------


def test_health_describes_the_model(client):
    described = client.get("/health").json()
    assert described["status"] == "ready"
    assert described["model"]["name"] == "a model"
    assert MaskFormat.from_dict(described["model"]["format"]) == FORMATS["overlapping"]
    assert (described["model"]["bands"], described["model"]["overlap"]) == (3, True)
    assert described["outputs"] == ["png", "zip", "rle", "probabilities"]
    assert described["codecs"] == {"png": {"name": "bit_planes"}, "zip": {"name": "file_per_class"}}
    assert described["limits"] == {"bytes": 2**20, "pixels": 10_000, "requests": 256, "batch_size": 8}
    json.dumps(described)


def test_metrics_count_requests_by_status_and_batches_by_size():
    with client_of(predictor_of("binary")) as client:
        for content in (png(), png(2), b"nothing"):
            client.post("/predict", content=content)
        client.post("/view", content=png())
        client.post("/predict?output=rle&x=1", content=png())
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    assert 'segkit_requests_total{output="png",status="200"} 2.0' in lines
    assert 'segkit_requests_total{output="png",status="415"} 1.0' in lines
    assert 'segkit_requests_total{output="view",status="200"} 1.0' in lines
    assert 'segkit_request_seconds_count{output="png"} 2.0' in lines
    assert "segkit_batch_images_count 3.0" in lines
    assert 'segkit_batch_images_bucket{le="1.0"} 3.0' in lines
    assert "segkit_queue_images 0.0" in lines
    assert "segkit_requests_in_progress 0.0" in lines


def test_every_answer_binds_browsers(client):
    for answer in (client.get("/"), client.get("/page.js"), client.post("/predict", content=b""), client.get("/x")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_only_named_hosts_and_origins_are_let_in():
    hosts, origins = ["localhost", "127.0.0.1", "::1"], ["https://lab.example"]
    with client_of(predictor_of("binary"), hosts=hosts, origins=origins) as client:
        for host, status in (
            ("localhost:8000", 200), ("LOCALHOST", 200), ("127.0.0.1:1", 200), ("[::1]:8000", 200),
            ("evil.example:8000", 421), ("", 421), ("[", 421), ("localhost.evil.example", 421),
        ):  # fmt: skip
            assert client.get("/health", headers={"Host": host}).status_code == status, host
        seen = client.get("/health", headers={"Host": "localhost", "Origin": "https://lab.example"})
        assert seen.headers["access-control-allow-origin"] == "https://lab.example"
        other = client.get("/health", headers={"Host": "localhost", "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_without_hosts_any_name_is_answered():
    with client_of(predictor_of("binary")) as client:
        assert client.get("/health", headers={"Host": "any.example"}).status_code == 200


def test_no_batch_of_none():
    with pytest.raises(ValueError, match="batch_size is 0"):
        build_app(predictor_of("binary"), batch_size=0)
