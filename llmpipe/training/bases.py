"""GGUF files as models to begin from: each becomes a plain Hugging Face folder, once for a run.

The folder lies in the run directory, `.bases/NAME-<sha256 of the file>/`, so that a file with other content is another
folder, and the file itself is not needed any more. Its weights are the file's, in fp32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.integrations.gguf import read_gguf_metadata

from llmpipe.artifact import base_folder, sha256_of, sync_folder, write_json
from llmpipe.checkpoints import MARKER, is_complete, mark_complete
from llmpipe.context import Context
from llmpipe.errors import Problem, StageError
from llmpipe.settings import GgufSource
from llmpipe.training.packing import wait_for

LIKE_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais")
DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Ways to cut words, by their names in GGUF files: as GPT-2 does, and the same with every digit on its own.

Source: ggml-org/llama.cpp, src/llama-vocab.cpp. transformers 5.24 takes the second way for the first, and gives other
tokens for two spaces before a number than the model has learned; this can go once it knows these names.
"""
HINT = "the same model as a Hugging Face folder works as {path: FOLDER}"


def unpacked(source: GgufSource, ctx: Context) -> Path:
    """Return the folder of a GGUF file's model; rank 0 makes it where the run has none yet.

    Raises:
        StageError: the file is gone or has changed, or transformers cannot read it.
    """
    file = Path(source.gguf)
    digest = next((entry.files[source.gguf] for entry in ctx.step.inputs if source.gguf in entry.files), None)
    digest = digest or sha256_of(_there(file))
    folder = base_folder(ctx.run_dir, source.gguf, digest)
    if ctx.rank == 0 and not is_complete(folder):
        ctx.progress(doing=f"unpacking {file.name}")
        _unpack(_there(file), folder, digest=digest, ctx=ctx)
    wait_for(folder / MARKER)
    return folder


def _there(file: Path) -> Path:
    if not file.is_file():
        raise StageError(Problem("is no longer there", where=str(file)), hint="put it back, or set another `gguf:`")
    return file


def _unpack(file: Path, folder: Path, *, digest: str, ctx: Context) -> None:
    """Write the folder under another name; it gets its own once it is whole, and of the file that was asked for."""
    work = folder.with_name(f"{folder.name}.tmp")
    for stale in (work, folder):
        shutil.rmtree(stale, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        metadata, tokenizer, model = _read(file, work)
        tokenizer.save_pretrained(work)
        model.save_pretrained(work)
        _mend_tokenizer(work, file, metadata, ctx)
        _check_tokenizer(work, file, tokenizer, rows=model.get_input_embeddings().num_embeddings)
        if sha256_of(file) != digest:
            raise StageError(Problem("changed while the stage was reading it", where=str(file)), hint="run it again")
        mark_complete(work, gguf=file.name, sha256=digest)
        work.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    millions = model.num_parameters() / 1e6
    ctx.say(f"{file.name} is unpacked, once for this run: {millions:,.2f} M parameters in fp32, {megabytes:,.0f} MB")


def _read(file: Path, empty: Path) -> tuple[dict[str, Any], Tokenizer, PreTrainedModel]:
    """Read a file's metadata, tokenizer and model (fp32) with transformers.

    The empty folder stands for the file's own, where a tokenizer.json would be taken for the file's tokenizer.
    """
    options: dict[str, Any] = {"gguf_file": str(file.absolute()), "local_files_only": True, "trust_remote_code": False}
    try:
        metadata, _ = read_gguf_metadata(str(file))
        tokenizer = AutoTokenizer.from_pretrained(empty, **options)
        model, facts = AutoModelForCausalLM.from_pretrained(
            empty,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),  # else weights may stay packed, and cannot be saved
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # a dozen classes: cut off, an architecture or numbers it does not know, no package gguf
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise StageError(Problem(f"transformers cannot read it: {said}", where=str(file)), hint=HINT) from error
    if missing := sorted(facts["missing_keys"]):
        raise StageError(Problem(f"has no weights for {missing[0]}", where=str(file)), hint=HINT)
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [end for end in dict.fromkeys(ends) if end is not None]
    if len(ends) > 1:  # transformers 5.24 takes the first alone, and Llama 3 ends its turns with the second
        model.generation_config.eos_token_id = ends
    return metadata, tokenizer, model


def _mend_tokenizer(folder: Path, file: Path, metadata: dict[str, Any], ctx: Context) -> None:
    """Leave out tokens that are not in the file, and cut words as it says.

    transformers 5.24 makes byte-level tokenizers of GPT-2's, which brings its own `<|endoftext|>` along.
    """
    path = folder / "tokenizer.json"
    backend = json.loads(path.read_text(encoding="utf-8"))
    size = metadata["tokenizer.ggml.tokens"]
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] < size]
    split, way = backend["pre_tokenizer"] or {}, metadata.get("tokenizer.ggml.pre")
    if split.get("type") == "ByteLevel" and split["use_regex"]:
        if way in DIGIT_BY_DIGIT:
            digits = {"type": "Digits", "individual_digits": True}
            backend["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, split]}
        elif way not in LIKE_GPT2:
            ctx.say(f"{file.name} cuts words in the way {way or 'of no name'}, and here they are cut as GPT-2 does")
    write_json(path, backend)


def _check_tokenizer(folder: Path, file: Path, before: Tokenizer, *, rows: int) -> None:
    """Check that the folder's tokenizer gives the file's tokens, and only such as the model has a row for."""
    from llmpipe.training.gguf import TEXTS  # which needs the package

    after = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    texts = (*TEXTS, "a".join(str(token) for token in after.all_special_tokens))
    if len(after) > rows or any(after(text)["input_ids"] != before(text)["input_ids"] for text in texts):
        message = "transformers reads its tokenizer in one way, and in another once it is saved"
        raise StageError(Problem(message, where=str(file)), hint=HINT)
