"""Texts with one slip each, made from a right one.

Their messages are in `tests/golden/wrong-texts`.
"""

from __future__ import annotations

from pathlib import Path

RIGHT = (Path(__file__).parent / "right.ucl").read_text(encoding="utf-8")

EDITS: tuple[tuple[str, str, str], ...] = (
    ("01-missing-bracket-of-a-rule", "norm1[h]\n", "norm1[h\n"),
    (
        "02-missing-closing-brace-of-model",
        "when not tie_word_embeddings\n}",
        "when not tie_word_embeddings\n",
    ),
    (
        "03-missing-in-a-rule",
        '"decoder.layers.{local layer}.mlp.linear_fc2.weight"            = down',
        '"decoder.layers.{local layer}.mlp.linear_fc2.weight"            down',
    ),
    ("04-missing-comma-in-mesh", "mesh pp, tp, dp", "mesh pp tp dp"),
    (
        "05-missing-comma-in-tensor-axes",
        "tensor wk    [layer, kv, d, h]",
        "tensor wk    [layer kv, d, h]",
    ),
    ("06-commas-between-heads-axes-in-dims", "wo[h, kv q d]", "wo[h, kv, q, d]"),
    ("07-axes-swapped", "down[h, f]", "down[f, h]"),
    ("08-axis-misspelled-in-rule", "up[f]), h]", "up[ff]), h]"),
    ("09-atom-misspelled", "= norm1[h]", "= nrom1[h]"),
    ("10-wrong-axis-of-atom", "= norm1[h]", "= norm1[f]"),
    ("11-mesh-axis-that-is-not-declared", "place kv, f over tp", "place kv, f over tensor"),
    ("12-missing-layer", "{local layer}.input_layernorm", "0.input_layernorm"),
    ("13-local-layer-without-place", "    place layer over pp\n", ""),
    ("14-over-written-as-on", "place kv, f over tp", "place kv, f on tp"),
    ("15-single-quotes", '"decoder.final_layernorm.weight"', "'decoder.final_layernorm.weight'"),
    ("16-unicode-quotes", '"decoder.final_layernorm.weight"', "“decoder.final_layernorm.weight”"),
    ("17-semicolons", "place layer over pp\n", "place layer over pp;\n"),
    ("18-comment", "place layer over pp\n", "place layer over pp // stages\n"),
    ("19-regex-style-name", "decoder.layers.{local layer}.input", "decoder.layers.(\\\\d+).input"),
    ("20-python-style-around-tensor-with-colon", "tensor embed [v, h]", "tensor embed: [v, h]"),
    ("21-if-instead-of-when", "head  [v, h] when not", "head  [v, h] if not"),
    (
        "22-instead-of",
        "layout megatron of llama {",
        'layout megatron of llama when model_type = "llama" {',
    ),
    (
        "23-instead-of-and",
        "when tie_word_embeddings and pp > 1",
        "when tie_word_embeddings && pp > 1",
    ),
    ("24-instead-of-not", "when not tie", "when !tie"),
    ("25-without-parentheses", "[(gate[f] + up[f]), h]", "[gate[f] + up[f], h]"),
    ("26-sum-with-atom-before", "[(gate[f] + up[f]), h]", "fc1[(gate[f] + up[f]), h]"),
    ("27-padded-size-written-as-number", "padded to a multiple of 128 * tp", "padded to 32128"),
    ("28-number-as-dimension", "norm1[h]", "norm1[4096]"),
    ("29-on-stage-0", "on first stage", "on stage 0"),
    (
        "30-atom-forgotten",
        '    "decoder.layers.{local layer}.mlp.linear_fc2.weight"            = down[h, f]\n',
        "",
    ),
    (
        "31-duplicate-rule",
        "norm1[h]\n",
        'norm1[h]\n    "decoder.layers.{local layer}.input_layernorm.weight" = norm1[h]\n',
    ),
    (
        "32-dim-inside-wrong-place-place-over-two-mesh-axes-with-brackets",
        "place layer over pp",
        "place layer over (pp, tp)",
    ),
    ("33-as-sizes-with-parens-in-place", "place layer over pp", "place layer over pp as (1, 2)"),
    ("38-very-long-line-with-an-error", "norm1[h]\n", "norm1[hh]" + " " * 2000 + "\n"),
    ("40-non-breaking-space", "place kv, f over tp", "place\xa0kv, f over tp"),
    (
        "42-wildcard-in-model-layout",
        "decoder.layers.{local layer}.input_layernorm.weight",
        "decoder.layers.*.input_layernorm.weight",
    ),
    (
        "43-star-star",
        "decoder.layers.{local layer}.input_layernorm.weight",
        "**.input_layernorm.weight",
    ),
    ("44-two-axes-cut-over-one-mesh-axis", "place kv, f over tp", "place kv, f, h over tp"),
    ("45-underscore-in-modelled", "norm1[h]\n", "norm1[_]\n"),
    ("46-rest-in-modelled", "norm1[h]\n", "norm1[...]\n"),
    ("47-layout-of-unknown-model", "layout megatron of llama", "layout megatron of lama"),
    ("48-float", "128 * tp", "1.5 * tp"),
    (
        "49-hidden-axis-reserved-word",
        "axis f     = intermediate_size",
        "axis local = intermediate_size",
    ),
    (
        "50-config-backwards",
        "config num_hidden_layers = args.num_layers",
        "config args.num_layers = num_hidden_layers",
    ),
    ("51-layer-02d", "{local layer}.input", "{layer:02d}.input"),
    ("52-layer-1", "{local layer}.input", "{layer + 1}.input"),
    (
        "53-on-last-stage-twice-different",
        "norm[h] on last stage",
        "norm[h] on last stage on first stage",
    ),
    (
        "54-list-in-condition",
        "tensor norm1 [layer, h]",
        "tensor norm1 [layer, h] when layer in [0, 3]",
    ),
    ("55-tensor-after-layout-keyword-typo-tenser", "tensor norm1", "tenser norm1"),
    ("56-keyword-typo-plase", "place layer over pp", "plase layer over pp"),
    ("57-capital-keyword-place", "place layer over pp", "Place layer over pp"),
    ("58-hyphen-in-name", "tensor norm1 [layer, h]", "tensor norm-1 [layer, h]"),
    ("59-size-in-model-layout", "norm1[h]\n", "norm1[h:4096]\n"),
    ("60-trailing-comma", "wo[h, kv q d]", "wo[h, kv q d,]"),
    ("61-transposed-keyword", "down[h, f]\n", "down[h, f] transposed\n"),
    ("64-einops-style-arrow", "wo[h, kv q d]", "wo[h (kv q d)]"),
    ("65-missing-quote", '"decoder.final_layernorm.weight"', '"decoder.final_layernorm.weight'),
    ("66-pp-in-when-misspelled", "and pp > 1", "and ppp > 1"),
    ("67-size-unknown-name", "axis h     = hidden_size", "axis h     = hiden_size"),
    ("68-stage-without-pp", "mesh pp, tp, dp", "mesh tp, dp"),
    ("69-unused-mesh-axis", "mesh pp, tp, dp", "mesh pp, tp, dp, ep"),
    (
        "70-axis-declared-twice",
        "axis d     = head_dim",
        "axis d     = head_dim\n    axis d = kv_channels",
    ),
)
"""What each is called, and what is written for what in the right text."""

SHORT = (Path(__file__).parent / "right_short.ucl").read_text(encoding="utf-8")

SHORT_EDITS: tuple[tuple[str, str, str], ...] = (
    ("71-like-an-unknown-layout", "like megatron whole", "like megtron whole"),
    ("72-as-instead-of-like", "like megatron whole", "as megatron whole"),
    ("73-extends-instead-of-like", "like megatron whole", "extends megatron"),
    ("74-whole-in-front", "like megatron whole", "whole like megatron"),
    ("75-like-itself", "like megatron whole", "like megatron_dist whole"),
    ("76-like-in-quotes", "like megatron whole", 'like "megatron" whole'),
    ("77-fix-without-a-value", "fix te = true", "fix te"),
    ("78-fix-that-compares", "fix te = true", "fix te == true"),
    ("79-fix-that-nothing-asks-for", "fix te = true", "fix tee = true"),
    ("80-fix-of-a-name", "fix te = true", "fix te = fused"),
    ("81-fix-without-its-word", "fix te = true", "te = true"),
    ("82-stack-of-no-index", "stack layer", "stack layers"),
    ("83-stack-with-braces", "stack layer", "stack {layer}"),
    ("84-stack-over", "stack layer", "stack over layer"),
    ("85-under-without-a-brace", 'under "layers.{layer}." {', 'under "layers.{layer}."'),
    ("86-under-without-quotes", 'under "layers.{layer}." {', "under layers.{layer}. {"),
    ("87-rules-without-under", 'under "layers.{layer}." {', '"layers.{layer}." {'),
    ("88-biases", "with bias", "with biases"),
    ("89-bias-without-with", "with bias", "and bias"),
    ("90-bias-of-what-has-none", "wo[h, n d]", "wo[h, n d] with bias"),
    ("91-bias-of-no-weight", '"q.weight"    = wq', '"q.w"    = wq'),
    ("92-bias-without-a-name", "bias bq when", "bias when"),
    ("93-with-bias-in-a-model", "bias bq when", "with bias bq when"),
    ("94-several-tensors-without-commas", "gate, up   [", "gate up   ["),
    (
        "95-one-bias-of-several",
        "gate, up   [layer, f, h] when dense",
        "gate, up [layer, f, h] bias b",
    ),
    ("96-let-without-a-sign", "let dense = layer", "let dense layer"),
    ("97-use-of-unknown-lines", "use of_megatron", "use of_megatrn"),
    ("98-use-in-quotes", "use of_megatron", 'use "of_megatron"'),
    ("99-include-of-lines", "use of_megatron", "include of_megatron"),
    ("100-shared-lines-without-config", "    config hidden_size ", "    hidden_size "),
    (
        "101-config-without-commas",
        "config num_hidden_layers, hidden_size, head_dim",
        "config num_hidden_layers hidden_size",
    ),
    (
        "102-include-without-under",
        "config num_hidden_layers, hidden_size, head_dim",
        "include llama.hf",
    ),
    (
        "103-include-without-quotes",
        "config num_hidden_layers, hidden_size, head_dim",
        "include llama.hf under language",
    ),
    (
        "104-include-of-no-layout",
        "config num_hidden_layers, hidden_size, head_dim",
        'include llama under "l."',
    ),
    ("105-axis-of-a-weight-with-bias", "wq[n d, h] with bias", "wq[n dd, h] with bias"),
    ("106-inherited-fault", "norm1[h] when te", "norm1[hh] when te"),
    (
        "107-config-backwards-of-an-expression",
        "config num_hidden_layers = args.num_layers",
        "config args.num_layers = num_hidden_layers or 4",
    ),
    (
        "108-config-without-equals",
        "config num_hidden_layers = args.num_layers",
        "config num_hidden_layers args.num_layers",
    ),
)
