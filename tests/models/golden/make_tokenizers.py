"""Writes `tokenizers.json` anew: small vocabularies, and the tokens of texts by other programs.

    python -m tests.models.golden.make_tokenizers

It needs sentencepiece, transformers and regex. SentencePiece's vocabularies are learned and applied
by that library. Byte pairs of bytes are learned by `tokenizers` and applied by the few lines below,
as tiktoken applies them; for Qwen2 Hugging Face's own class must agree.
"""

import io
import itertools
import json
import tempfile
import unicodedata

import regex
import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models, pre_tokenizers, trainers

from tests.models.golden.families import CASES

HERE = CASES.parent
TEXTS = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
TEXTS += ["It's 12 or 123 or 1234 or 12345; they'll see, I'LL see.", "(12345)\n\n  end"] * 20
APPLIED = [
    *TEXTS[:24],
    "  two  spaces and a tab\t, then\n\n a line  ",
    "I'LL don't we'Ve it's 12345 67 8,9",
    "na\u0131ve cafe\u0301 caf\u00e9 \u4f60\u597d \U0001f642\U0001f642",
    "thereof",
    " \uff21 few\u2026  words ",
    "\n",
    " ",
]
# From the published programs of Llama 3 and Qwen2.
PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def sentence(kind):
    """A vocabulary of SentencePiece, trained as LLaMA 2's and T5's were."""
    out = io.BytesIO()
    pairs = kind == "bpe"
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", delete=False) as rules:
        rules.write("FF21\t0041\n2026\t002E 002E 002E\n9\t20\nA\t20\n")
    changes = {"normalization_rule_tsv": rules.name}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=out, model_type=kind, vocab_size=480,
        byte_fallback=pairs, **({"normalization_rule_name": "identity"} if pairs else changes),
        remove_extra_whitespaces=not pairs, split_digits=pairs, character_coverage=0.99,
        hard_vocab_limit=False, max_sentence_length=100_000, num_threads=1, minloglevel=2,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    types = []
    for i in range(len(model)):
        states = ((model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6))
        types.append(next((number for state, number in states if state(i)), 1))
    found = {
        "tokens": [model.id_to_piece(i) for i in range(len(model))],
        "scores": [model.get_score(i) for i in range(len(model))],
        "types": types,
        "unknown": model.unk_id(),
        "ids": [model.encode(text) for text in APPLIED],
        "decoded": [model.decode(model.encode(text)) for text in APPLIED],
    }
    if not pairs:
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString(out.getvalue())
        found["charsmap"] = proto.normalizer_spec.precompiled_charsmap.hex()
    return found


def merged(piece, ranks):
    """Byte pairs of one piece, the first learned first."""
    parts = list(piece)
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        parts[at : at + 2] = ["".join(best)]
    return parts


def byte_pairs(name):
    """A vocabulary of byte pairs, and tokens as tiktoken gives them."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    state = json.loads(made.to_str())["model"]
    vocab, merges = state["vocab"], [tuple(pair) for pair in state["merges"]]
    # A token that no merges build: found only where whole pieces are looked up first.
    vocab["thereof"] = len(vocab)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    letters = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ids = []
    for text in APPLIED:
        if name == "qwen2":
            text = unicodedata.normalize("NFC", text)
        row = []
        for piece in regex.findall(PATTERNS[name], text):
            coded = "".join(part for part, _ in letters.pre_tokenize_str(piece))
            whole = name == "llama-bpe" and coded in vocab
            row += [vocab[part] for part in ([coded] if whole else merged(coded, ranks))]
        ids.append(row)
    if name == "qwen2":
        theirs = transformers.Qwen2Tokenizer(vocab=dict(vocab), merges=merges)
        assert [theirs.encode(text, add_special_tokens=False) for text in APPLIED] == ids
    return {
        "tokens": sorted(vocab, key=vocab.get),
        "merges": [" ".join(p) for p in merges],
        "ids": ids,
    }


if __name__ == "__main__":
    content = {
        "made_with": {
            lib.__name__: lib.__version__ for lib in (sentencepiece, transformers, regex)
        },
        "texts": APPLIED,
        "spm_bpe": sentence("bpe"),
        "spm_unigram": sentence("unigram"),
        **{name: byte_pairs(name) for name in PATTERNS},
    }
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    (HERE / "tokenizers.json").write_text(text.replace('],"', '],\n"') + "\n")
