"""Spans by character and by token: what a span's tokens decode to is the span's text, whatever the batch looks like."""

import pytest
import torch
from helpers.tiny import IMAGE_TOKENS, picture, tiny_llama, tiny_llava

from rmuse_interp import RMuseError
from rmuse_interp.data.spans import locate, parse_response, render_response, span_masks, split_response

REASONING, ANSWER = "The person in the picture is Mara Venn. She bakes.", "a baker, in Oslo"
QUESTIONS = ["What is this person's occupation?", "Who is Oren Tal? Where does he live, and since when?"]
TEMPLATES = {
    "llava": "USER: <image>\n{q}\nASSISTANT:",
    "roles": "<s>[user]: <image> {q} [/user]\n[assistant]:",
    "question first": "{q}\n<image>\nReply:",
}
DELIMITERS = [("<think>", "</think>"), ("Reasoning:", "Answer:")]


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_llava())


def encode(processor, prompts, responses, images, side):
    processor.tokenizer.padding_side = side
    shown = [image for image in images if image is not None]
    texts = [p + r for p, r in zip(prompts, responses, strict=True)]
    return processor(images=shown or None, text=texts, return_tensors="pt", padding=True)


def decoded(processor, encoded, mask, row):
    return processor.tokenizer.decode(encoded["input_ids"][row][mask[row]]).strip()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("delimiters", DELIMITERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_tokens_in_a_span_decode_to_its_text(processor, template, delimiters, side):
    with_image = TEMPLATES[template]
    without = with_image.replace("<image>", "")
    prompts = [with_image.format(q=QUESTIONS[0]), without.format(q=QUESTIONS[1])]
    responses = [
        " " + render_response(REASONING, ANSWER, delimiters),
        " " + render_response("I do.", "no", delimiters),
    ]
    encoded = encode(processor, prompts, responses, [picture(), None], side)
    masks = span_masks(processor, encoded, prompts, responses, questions=QUESTIONS, delimiters=delimiters)
    for row, (reasoning, answer) in enumerate([(REASONING, ANSWER), ("I do.", "no")]):
        assert decoded(processor, encoded, masks.reasoning, row) == reasoning
        assert decoded(processor, encoded, masks.answer, row) == answer
        assert decoded(processor, encoded, masks.question, row) == QUESTIONS[row]
    assert masks.image.sum(dim=1).tolist() == [IMAGE_TOKENS, 0]
    assert torch.equal(masks.image, encoded["input_ids"] == processor.image_token_id)
    for mask in (masks.image, masks.question, masks.prompt_text, masks.reasoning, masks.answer):
        assert not (mask & ~encoded["attention_mask"].bool()).any()
    assert not (masks.reasoning & masks.answer).any()
    assert not (masks.prompt_text & (masks.reasoning | masks.answer | masks.image)).any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompt_end_is_where_the_prompt_alone_ends(processor, side):
    prompts = [TEMPLATES["llava"].format(q=q) for q in QUESTIONS]
    responses = [" " + render_response(REASONING, ANSWER)] * 2
    encoded = encode(processor, prompts, responses, [picture(0), picture(1)], side)
    masks = span_masks(processor, encoded, prompts, responses)
    for row, prompt in enumerate(prompts):
        alone = encode(processor, [prompt], [""], [picture()], side)["input_ids"][0]
        first = int(encoded["attention_mask"][row].argmax())
        assert int(masks.prompt_end[row]) - first == len(alone) - 1
        assert int(masks.prompt_text[row].nonzero().max()) == int(masks.prompt_end[row])


def test_prompts_alone_have_no_response_spans(processor):
    prompts = [TEMPLATES["llava"].format(q=QUESTIONS[0]), "USER: Hi\nASSISTANT:"]
    encoded = encode(processor, prompts, ["", ""], [picture(), None], "left")
    masks = span_masks(processor, encoded, prompts)
    assert not (masks.reasoning | masks.answer | masks.question).any()
    assert masks.prompt_end.tolist() == [encoded["input_ids"].shape[1] - 1] * 2
    # after the last image token; the whole prompt where there is none
    assert decoded(processor, encoded, masks.prompt_text, 0) == QUESTIONS[0] + "\nASSISTANT:"
    assert decoded(processor, encoded, masks.prompt_text, 1) == "USER: Hi\nASSISTANT:"


def test_chat_template_rendering_is_understood(processor):
    content = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    response = " " + render_response(REASONING, ANSWER)
    encoded = encode(processor, [prompt], [response], [picture()], "left")
    masks = span_masks(processor, encoded, [prompt], [response], questions=QUESTIONS[:1])
    assert decoded(processor, encoded, masks.question, 0) == QUESTIONS[0]
    assert decoded(processor, encoded, masks.reasoning, 0) == REASONING


def test_special_tokens_are_no_prompt_text(processor):
    prompts = ["<s>USER: Hi</s>\nASSISTANT:"]
    encoded = encode(processor, prompts, [""], [None], "left")
    masks = span_masks(processor, encoded, prompts)
    assert decoded(processor, encoded, masks.prompt_text, 0) == "USER: Hi\nASSISTANT:"


def test_several_pictures_in_one_prompt(processor):
    prompt, response = "USER: <image>\n<image>\nSame person?\nASSISTANT:", " <think> I compare. </think> yes"
    encoded = encode(processor, [prompt], [response], [picture(0), picture(1)], "left")
    masks = span_masks(processor, encoded, [prompt], [response], questions=["Same person?"])
    assert int(masks.image.sum()) == 2 * IMAGE_TOKENS
    assert decoded(processor, encoded, masks.question, 0) == "Same person?"
    assert decoded(processor, encoded, masks.answer, 0) == "yes"


def test_direct_answers_have_an_answer_alone(processor):
    prompt = TEMPLATES["llava"].format(q=QUESTIONS[0])
    encoded = encode(processor, [prompt], [" baker"], [picture()], "left")
    masks = span_masks(processor, encoded, [prompt], [" baker"], delimiters=None)
    assert decoded(processor, encoded, masks.answer, 0) == "baker"
    assert not masks.reasoning.any()


def test_a_text_only_tokenizer_will_do():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama())
    prompts, responses = (
        ["USER: Hi\nASSISTANT:", "Go:"],
        [" <think> I greet. </think> hello", " <think> a </think> b"],
    )
    encoded = tokenizer(
        [p + r for p, r in zip(prompts, responses, strict=True)], return_tensors="pt", padding=True
    )
    masks = span_masks(tokenizer, encoded, prompts, responses)
    assert tokenizer.decode(encoded["input_ids"][0][masks.reasoning[0]]).strip() == "I greet."
    assert tokenizer.decode(encoded["input_ids"][1][masks.answer[1]]).strip() == "b"


def test_sentencepiece_style_tokens_and_an_added_bos():
    """LLaVA-1.5's tokenizer marks blanks inside tokens and puts a token without characters in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>", "<s>", "<pad>"], show_progress=False
    )
    inner.train_from_iterator([REASONING, ANSWER, *QUESTIONS, "USER: ASSISTANT: <think> </think>\n"], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", unk_token="<unk>", pad_token="<pad>", padding_side="left"
    )
    prompts = [f"USER: {q}\nASSISTANT:" for q in QUESTIONS]
    responses = [" " + render_response(REASONING, ANSWER), " " + render_response("She.", "no")]
    texts = [p + r for p, r in zip(prompts, responses, strict=True)]
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    masks = span_masks(tokenizer, encoded, prompts, responses, questions=QUESTIONS)
    for row, (reasoning, answer) in enumerate([(REASONING, ANSWER), ("She.", "no")]):
        for mask, text in (
            (masks.reasoning, reasoning),
            (masks.answer, answer),
            (masks.question, QUESTIONS[row]),
        ):
            assert tokenizer.decode(encoded["input_ids"][row][mask[row]]).strip() == text
        alone = tokenizer(prompts[row])["input_ids"]
        assert int(masks.prompt_end[row]) == int(encoded["attention_mask"][row].argmax()) + len(alone) - 1
        assert int(encoded["input_ids"][row][masks.prompt_text[row]][0]) != tokenizer.bos_token_id


def test_faults_name_the_row(processor):
    prompts = [TEMPLATES["llava"].format(q=q) for q in QUESTIONS]
    responses = [" " + render_response(REASONING, ANSWER), " baker"]
    encoded = encode(processor, prompts, responses, [picture(), picture()], "left")
    with pytest.raises(RMuseError, match=r"^e2: required '<think>' at the start"):
        span_masks(processor, encoded, prompts, responses, names=["e1", "e2"])
    with pytest.raises(RMuseError, match="required the question"):
        span_masks(processor, encoded, prompts, responses, delimiters=None, questions=["Where?", "When?"])
    with pytest.raises(RMuseError, match=r"row 0: required the tokens of"):
        span_masks(processor, encoded, prompts)  # the responses were forgotten
    with pytest.raises(RMuseError, match="one rendered prompt per row"):
        span_masks(processor, encoded, prompts[:1])


def test_locate_gives_ranges_with_the_padding_counted(processor):
    prompt, response = TEMPLATES["llava"].format(q=QUESTIONS[0]), " <think> I look. </think> red"
    encoded = encode(processor, [prompt], [response], [picture()], "left")
    ids = encoded["input_ids"][0].tolist()
    plain = locate(processor, prompt, response, input_ids=ids, question=QUESTIONS[0])
    moved = locate(processor, prompt, response, input_ids=ids, question=QUESTIONS[0], padding=5)
    assert plain.image is not None
    assert plain.image[1] - plain.image[0] == IMAGE_TOKENS
    for name in ("image", "question", "prompt_text", "reasoning", "answer"):
        assert tuple(i + 5 for i in getattr(plain, name)) == getattr(moved, name)
    assert moved.prompt_end == plain.prompt_end + 5


BROKEN = [
    ("", "at the start"),
    ("Oslo", "at the start"),
    ("She <think> r </think> a", "at the start"),
    ("<think> r", "after the reasoning"),
    ("<think> </think> a", "reasoning that is not empty"),
    ("<think> r </think> ", "required an answer"),
    ("<think> r </think> a </think> b", "once each"),
    ("<think> <think> r </think> a", "once each"),
]


@pytest.mark.parametrize(("text", "said"), BROKEN)
def test_fitting_refuses_what_scoring_calls_malformed(text, said):
    with pytest.raises(RMuseError, match=f"^x7: .*{said}"):
        split_response(text, name="x7")
    assert not parse_response(text).well_formed


def test_malformed_responses_are_scanned_whole():
    for text in ("<think> she is Mara", "she is <think> Mara", "<think> </think> Mara"):
        assert parse_response(text).reasoning == text.strip()
    assert parse_response("<think> r </think> a </think> b").answer == "b"
    bare = parse_response(" baker ")
    assert (bare.reasoning, bare.answer) == ("", "baker")


@pytest.mark.parametrize("delimiters", DELIMITERS)
def test_render_and_parse_are_inverse(delimiters):
    text = render_response(f"  {REASONING} ", f" {ANSWER}\n", delimiters)
    assert "  " not in text
    parsed = parse_response(f"\n{text} ", delimiters)
    assert (parsed.reasoning, parsed.answer, parsed.well_formed) == (REASONING, ANSWER, True)
