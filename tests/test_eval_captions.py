"""Reading prompts: every format, every way a file can be wrong."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsd.demo import held_out_prompts
from agentsd.evaluation.captions import Prompt, demo_prompts, load_captions

SUBSET = Path(__file__).parent / "data" / "captions_val2017_subset200.json"


def coco(*annotations, images=None) -> dict:
    """COCO captions of (id, image_id, caption)."""
    listed = sorted({image_id for _, image_id, _ in annotations}) if images is None else images
    return {
        "images": [{"id": image_id} for image_id in listed],
        "annotations": [{"id": i, "image_id": image_id, "caption": text} for i, image_id, text in annotations],
    }


def write(folder: Path, name: str, content) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8", newline="")
    return path


# --- what is read ---


def test_the_committed_subset_of_coco():
    prompts = load_captions(SUBSET)
    assert len(prompts) == 200
    assert [prompt.index for prompt in prompts] == list(range(200))
    ids = [prompt.image_id for prompt in prompts]
    assert ids == sorted(ids)
    assert ids[0] == 139
    assert all(prompt.text == " ".join(prompt.text.split()) for prompt in prompts)
    assert load_captions(SUBSET, num=7) == prompts[:7]


def test_the_lowest_annotation_of_each_image_in_order_of_images_whatever_the_order_of_the_file(tmp_path):
    annotations = [(9, 20, "late"), (4, 20, "first"), (5, 20, "later"), (30, 3, "other"), (31, 3, "x")]
    expected = [Prompt(0, 3, "other"), Prompt(1, 20, "first")]
    for seed in range(5):
        random.Random(seed).shuffle(annotations)
        assert load_captions(write(tmp_path, "captions.json", coco(*annotations))) == expected


def test_ids_are_compared_as_numbers(tmp_path):
    path = write(tmp_path, "captions.json", coco((10, 9, "ten"), (9, 9, "nine"), (1, 100, "x")))
    assert [(prompt.image_id, prompt.text) for prompt in load_captions(path)] == [(9, "nine"), (100, "x")]


def test_white_space_is_normalised_and_equal_texts_stay(tmp_path):
    path = write(tmp_path, "captions.json", coco((1, 1, " A  dog\nruns. \n"), (2, 2, "A dog runs.")))
    assert [prompt.text for prompt in load_captions(path)] == ["A dog runs.", "A dog runs."]


def test_a_later_empty_caption_that_nobody_reads_is_no_error(tmp_path):
    assert len(load_captions(write(tmp_path, "captions.json", coco((1, 1, "A dog."), (2, 1, ""))))) == 1


def test_extra_keys_are_passed_over(tmp_path):
    data = coco((1, 1, "A dog.")) | {"info": {}, "licenses": [], "type": "captions"}
    assert load_captions(write(tmp_path, "captions.json", data)) == [Prompt(0, 1, "A dog.")]


COCO_30K = (
    "image_id,source,prompt,evaluation_seed\n"
    "000000203564,coco-30k,A bicycle.,41337\n"
    '000000571635,coco-30k,"A toilet, a sink.",10030\n'
    '000000482917,coco-30k,"A dog watching tv\n",64297\n'
)
MLPERF = "id\timage_id\tcaption\theight\n70\t227049\tA city.\t640\n277\t288229\tA clock.\t640\n"


def test_the_table_of_coco_30k(tmp_path):
    assert load_captions(write(tmp_path, "coco_30k.csv", COCO_30K)) == [
        Prompt(0, 203564, "A bicycle."),
        Prompt(1, 571635, "A toilet, a sink."),
        Prompt(2, 482917, "A dog watching tv"),
    ]


def test_the_table_of_mlperf(tmp_path):
    path = write(tmp_path, "captions.tsv", MLPERF)
    assert load_captions(path) == [Prompt(0, 227049, "A city."), Prompt(1, 288229, "A clock.")]


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_from_windows(tmp_path, prefix, end):
    path = write(tmp_path, "prompts.csv", prefix + f"Caption , Image_ID{end}A dog.,7{end}{end}A cat.,b{end}".encode())
    assert load_captions(path) == [Prompt(0, 7, "A dog."), Prompt(1, "b", "A cat.")]


def test_a_table_without_ids_counts(tmp_path):
    path = write(tmp_path, "prompts.csv", "prompt\nA dog.\nA cat.\nA dog.\n")
    assert [prompt.image_id for prompt in load_captions(path)] == [0, 1, 2]


def test_a_table_with_ids_of_coco(tmp_path):
    path = write(tmp_path, "prompts.csv", "case_number,prompt,coco_id\n0,A dog.,000000000139\n")
    assert load_captions(path) == [Prompt(0, 139, "A dog.")]


@pytest.mark.parametrize(
    "text",
    ["A dog.\nA cat.\n", "A dog.\r\nA cat.", "A dog.\rA cat.", "\ufeffA dog.\n A  cat. \n", "A dog.\nA cat.\n\n \r\n"],
)
def test_plain_text(tmp_path, text):
    assert load_captions(write(tmp_path, "prompts.txt", text)) == [Prompt(0, 0, "A dog."), Prompt(1, 1, "A cat.")]


def test_a_line_of_plain_text_may_hold_a_unicode_line_separator(tmp_path):
    path = write(tmp_path, "prompts.txt", "A\u2028dog.\n")
    assert load_captions(path) == [Prompt(0, 0, "A dog.")]


@given(st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1, max_size=8))
def test_any_texts_survive_a_json_file(tmp_path_factory, texts):
    data = coco(*((i, i, text) for i, text in enumerate(texts)))
    path = write(tmp_path_factory.mktemp("captions"), "captions.json", data)
    assert [prompt.text for prompt in load_captions(path)] == [" ".join(text.split()) for text in texts]


def test_demo_prompts():
    prompts = demo_prompts(4, 3)
    assert [prompt.text for prompt in prompts] == held_out_prompts(4, 3)
    assert [(prompt.index, prompt.image_id) for prompt in prompts] == [(i, i) for i in range(4)]
    assert demo_prompts(2, 3) == prompts[:2]
    assert demo_prompts(4, 4) != prompts
    with pytest.raises(ValueError, match="number=0 is below 1"):
        demo_prompts(0, 0)


# --- what is refused ---

GOOD = coco((1, 1, "A dog."), (2, 2, "A cat."))


def changed(key, value, index=0, part="annotations"):
    data = json.loads(json.dumps(GOOD))
    if value is None:
        del data[part][index][key]
    else:
        data[part][index][key] = value
    return data


WRONG = {
    "suffix": ("captions.xml", "<x/>", r"suffix '.xml' is none of .json, .csv, .tsv, .txt; rename or convert"),
    "truncated": ("c.json", json.dumps(GOOD)[:-20], r"no complete JSON, line 1 column \d+.*truncated: fetch it again"),
    "empty json": ("c.json", "", r"no complete JSON, line 1 column 1"),
    "not utf-8": ("c.json", b'{"a": "\xe9"}', r"byte 7 is 0xe9, which is not UTF-8; convert the file to UTF-8"),
    "utf-16": ("c.txt", "A dog.".encode("utf-16"), r"byte 0 is 0xff, which is not UTF-8"),
    "a list": ("c.json", [], r"key 'annotations' must hold a list, the file holds list; give COCO captions"),
    "no annotations": ("c.json", {"images": []}, r"key 'annotations' must hold a list, the file holds \['images'\]"),
    "no images": ("c.json", {"annotations": []}, r"key 'images' must hold a list, the file holds \['annotations'\]"),
    "no prompt": ("c.json", {"annotations": [], "images": []}, r"holds no prompt; an evaluation needs at least 1"),
    "no id": ("c.json", changed("id", None), r"annotations\[0\].id=None; every entry needs a whole number there: add"),
    "text id": ("c.json", changed("id", "1", 1), r"annotations\[1\].id='1'; every entry needs a whole number"),
    "truth id": ("c.json", changed("id", True), r"annotations\[0\].id=True; every entry needs a whole number"),
    "no image_id": ("c.json", changed("image_id", None), r"annotations\[0\].image_id=None; every entry needs"),
    "image without id": ("c.json", changed("id", None, 1, "images"), r"images\[1\].id=None; every entry needs"),
    "instances": ("c.json", changed("caption", None), r"annotations\[0\] has no key 'caption' .* not instances"),
    "no text": ("c.json", changed("caption", 3), r"annotations\[0\].caption=3 is no text; write it as a string"),
    "empty caption": ("c.json", changed("caption", " \n"), r"annotations\[0\].caption=' \\n' is empty; .* remove it"),
    "twice": ("c.json", changed("id", 2), r"annotations id=2 occurs 2 times; once is allowed: remove the others"),
    "image twice": ("c.json", changed("id", 2, 0, "images"), r"images id=2 occurs 2 times; once is allowed"),
    "unknown image": ("c.json", coco((1, 5, "x"), images=[]), r"image_id=5 \(1 in all\) is in annotations but not in"),
    "silent image": ("c.json", coco((1, 1, "x"), images=[1, 8, 9]), r"image_id=8 \(2 in all\) is in images but has no"),
    "empty table": ("c.csv", "", r"holds no prompt"),
    "header only": ("c.csv", "prompt\n", r"holds no prompt"),
    "no column": ("c.csv", "text\nA dog.\n", r"columns \['text'\] hold 0 of 'caption' and 'prompt'; exactly one"),
    "two columns": ("c.csv", "caption,prompt\na,b\n", r"hold 2 of 'caption' and 'prompt'; exactly one is allowed"),
    "column twice": ("c.csv", "prompt,prompt\na,b\n", r"column='prompt' occurs 2 times; once is allowed: rename"),
    "comma": ("c.csv", "prompt\nA dog, a cat\n", r"line 2 has 2 fields, the header 1; quote fields that hold the sep"),
    "line end": (
        "c.tsv",
        "image_id\tprompt\n1\tA dog\nruns\n",
        r"line 3 has 1 fields, the header 2; quote .* line end",
    ),
    "open quote": ("c.csv", 'prompt\n"A dog\n', r"line 2: unexpected end of data; close every quoted field"),
    "stray quote": ("c.csv", 'prompt\n"Stop" sign\n', r"line 2: .* expected after '\"'; close .* double the quotes"),
    "empty field": ("c.csv", "image_id,prompt\n1,\n", r"line 2 prompt='' is empty; a prompt needs a word"),
    "empty id": ("c.csv", "image_id,prompt\n,A dog\n", r"line 2 image_id='' is empty"),
    "id twice": ("c.csv", "image_id,prompt\n07,a\n7,b\n", r"image_id=7 occurs 2 times; .* one prompt for each picture"),
    "empty text": ("c.txt", "", r"holds no prompt"),
    "half a character": (
        "c.json",
        changed("caption", "a \ud800 dog"),
        r"annotations\[0\].caption='a \\ud800 dog' holds '\\ud800', half of a character; write the character whole",
    ),
    "deep json": ("c.json", "[" * 200_000, r"JSON that cannot be read \(maximum recursion.*\); give COCO captions"),
    "long number": ("c.json", '{"a": ' + "7" * 5000 + "}", r"JSON that cannot be read \(Exceeds the limit"),
    "coco_id twice": ("c.csv", "coco_id,prompt\n07,a\n7,b\n", r"coco_id=7 occurs 2 times"),
    "blank lines": ("c.txt", "\n \n", r"holds no prompt"),
    "empty line": ("c.txt", "A dog.\n\nA cat.\n", r"line 2='' is empty; a prompt needs a word: fill or remove it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_the_file(tmp_path, case):
    name, content, message = WRONG[case]
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_captions(path)
    assert str(caught.value).startswith(f"captions file {path}: ")


def test_an_absent_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"absent.json: cannot be read \(No such file.*\); give an existing file"):
        load_captions(tmp_path / "absent.json")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match=r"folder.txt: cannot be read"):
        load_captions(tmp_path / "folder.txt")


@pytest.mark.parametrize("num", [0, -1, 201])
def test_more_or_fewer_prompts_than_there_are(num):
    with pytest.raises(
        ValueError, match=rf"num={num} of captions file .*: it holds 200 prompts; give 1 to 200, or leave"
    ):
        load_captions(SUBSET, num=num)


def test_what_is_wrong_beyond_num_is_refused_too(tmp_path):
    with pytest.raises(ValueError, match="line 3"):
        load_captions(write(tmp_path, "prompts.txt", "A dog.\nA cat.\n\nA cow.\n"), num=1)
