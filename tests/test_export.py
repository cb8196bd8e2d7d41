import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from newsrec.serving.export import verify, write_onnx, write_safetensors
from newsrec.training.module import RecommenderModule


@pytest.fixture(scope="module")
def exported(plm_dir, tmp_path_factory):
    """A small untrained model and the folder with its user encoder."""
    torch.manual_seed(0)
    shape = {"heads": 2, "ffn": 16}
    module = RecommenderModule(str(plm_dir), dim=16, news=shape, user=shape, max_history=20)
    module.configure_model()
    module.eval()
    torch.nn.init.normal_(module.recommender.user_encoder.empty)
    folder = tmp_path_factory.mktemp("export")
    write_onnx(module.recommender.user_encoder, folder / "user_encoder.onnx")
    write_safetensors(module.recommender.user_encoder, folder / "user_encoder.safetensors")
    return module, folder


def test_what_was_written_passes_its_verification(exported):
    module, folder = exported
    assert verify(module, folder) < 1e-5


@pytest.mark.parametrize("lengths", [[1], [0], [0, 20], [3, 0, 7, 20, 1, 0, 2, 5, 20], [35, 1]])
def test_onnx_gives_pytorchs_vectors_for_any_batch_and_history(exported, lengths):
    module, folder = exported
    longest = max(*lengths, 1)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    history = torch.randn(len(lengths), longest, 16) * mask[..., None]
    session = onnxruntime.InferenceSession(str(folder / "user_encoder.onnx"))
    feed = {"history": history.numpy(), "mask": mask.numpy()}
    with torch.no_grad():
        expected = module.recommender.user_encoder(history, mask)
    np.testing.assert_allclose(session.run(["user_vector"], feed)[0], expected, atol=1e-5)


def test_a_file_that_differs_from_the_model_is_refused(exported, tmp_path):
    module, folder = exported
    (tmp_path / "user_encoder.onnx").write_bytes((folder / "user_encoder.onnx").read_bytes())
    weights = load_file(folder / "user_encoder.safetensors")
    weights["empty"] = weights["empty"] * 1.01
    save_file(weights, tmp_path / "user_encoder.safetensors")
    with pytest.raises(RuntimeError, match="differs from PyTorch"):
        verify(module, tmp_path)


def test_the_weights_may_be_read_by_other_accounts(exported):
    _, folder = exported
    assert (folder / "user_encoder.safetensors").stat().st_mode & 0o044 == 0o044
