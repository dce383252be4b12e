"""Local tasks in the harness's own format, against direct loops; nothing is fetched."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from minipalm.config import MachineConfig, get_preset
from minipalm.data.batches import prompt_ids
from minipalm.data.tokenizer import BytePairTokenizer, WordTokenizer
from minipalm.evaluate import benchmarks
from minipalm.evaluate.benchmarks import (
    BenchmarkError,
    load_examinee,
    main,
    policy_names,
)
from minipalm.evaluate.harness import Examinee
from minipalm.model.lora import adapter_parameters
from minipalm.model.palm import PaLM
from minipalm.model.place import fine_tuned
from minipalm.train.stage import finish_stage
from tests.small import seeded, small_palm

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: pip install -e '.[eval]'",
)

# --- tasks of our own -----------------------------------------------------------------

SUBJECTS = ["fox", "bear", "owl", "cat", "dog", "hen"]
MMLU = [
    {
        "question": f" Which animal is number {n}? ",
        "choices": [SUBJECTS[(n + i) % 6] for i in range(4)],
        "answer": n % 4,
    }
    for n in range(12)
]
HELLASWAG = [
    {
        "activity_label": "Feeding",
        "ctx_a": f"A child and a {SUBJECTS[n % 6]} are in the yard.",
        "ctx_b": f"the child, {n} years old,",
        "endings": [
            "runs away.",
            f"gives the {SUBJECTS[n % 6]} some bread [substeps] and water.",
            "falls  down and sleeps until the evening of the next day.",
            "sings.",
        ],
        "label": str([3, 2, 0, 2, 3][n % 5]),
    }
    for n in range(10)
]
TEXTS = ["the fox and\n the bear.\n", "an owl: who, who? " * 9, "grüße"]
QUESTIONS = [f"who is number {n}?" for n in range(6)]
PROBLEMS = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def f{n}(x):\n    """Add {n}."""\n',
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(5) == 5 + {n}\n",
        "entry_point": f"f{n}",
    }
    for n in range(4)
]
YAML = {  # {theirs}: where the harness has its tasks; {here}: our data
    "mmlu_here": """
include: {theirs}/mmlu/default/_default_template_yaml
description: "The following are multiple choice questions.\\n\\n"
num_fewshot: 2
dataset_kwargs: {{data_files: {{test: {here}/mmlu.jsonl, dev: {here}/mmlu.jsonl}}}}
""",
    "hellaswag_here": """
include: {theirs}/hellaswag/hellaswag.yaml
dataset_kwargs:
  data_files: {{train: {here}/hellaswag.jsonl, validation: {here}/hellaswag.jsonl}}
""",
    "texts_here": """
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
dataset_kwargs: {{data_files: {{test: {here}/texts.jsonl}}}}
""",
    "answers_here": """
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 5}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
dataset_kwargs: {{data_files: {{test: {here}/answers.jsonl}}}}
""",
    "humaneval_here": """
include: {theirs}/humaneval/humaneval.yaml
dataset_kwargs: {{data_files: {{test: {here}/humaneval.jsonl}}}}
""",
    "other_code": """
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
dataset_kwargs: {{data_files: {{test: {here}/answers.jsonl}}}}
""",
}
TOKENIZER = BytePairTokenizer.train([str(MMLU), str(HELLASWAG), *TEXTS], merges=60)
WINDOW = 160  # MMLU's contexts with two examples do not fit; HellaSwag's do


def examinee(kind=Examinee):
    # embed_std: else what a random network says hardly depends on what it is asked
    model = small_palm(vocab_size=TOKENIZER.vocab_size, embed_std=1.0)
    return kind(model, TOKENIZER, window=WINDOW, batch_size=7, generator=seeded())


def plain_logprob(one, context, continuation):
    """Token by token, each from a row of its own that begins with the window."""
    kept = context.rstrip()
    head = len(prompt_ids(TOKENIZER, kept))
    ids = prompt_ids(TOKENIZER, context + continuation)
    start = max(0, len(ids) - WINDOW - 1)
    total = 0.0
    for at in range(head, len(ids)):
        row = torch.tensor([ids[start:at]])
        total += one.model(row)[0, -1].double().log_softmax(-1)[ids[at]].item()
    return total


def plain_answer(one, context, new):
    """Greedy up to a line's end, the whole row again for each token."""
    ids, written = prompt_ids(TOKENIZER, context), []
    for _ in range(new):
        token = one.model(torch.tensor([ids + written]))[0, -1].argmax().item()
        if token == TOKENIZER.eos_id:
            break
        written.append(token)
    return TOKENIZER.decode(written).split("\n")[0]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files and data; and a hub that cannot be reached."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # read when the hub's package is imported
        patch.setenv("HF_HOME", str(folder / "home"))
        import lm_eval.evaluator
        import lm_eval.tasks

        patch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)  # slow
        theirs = Path(lm_eval.tasks.__file__).parent
        for task, text in YAML.items():
            text = text.format(theirs=theirs, here=folder)
            head = f"task: {task}\ndataset_path: json\n"
            (folder / f"{task}.yaml").write_text(head + text, encoding="utf-8")
        one = examinee()
        answers = [
            {
                "question": question,
                "answer": plain_answer(one, f"{question}\nAnswer:", 5)
                if n % 3
                else "none of these",
            }
            for n, question in enumerate(QUESTIONS)
        ]
        write_lines(folder / "mmlu.jsonl", MMLU)
        write_lines(folder / "hellaswag.jsonl", HELLASWAG)
        write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
        write_lines(folder / "answers.jsonl", answers)
        write_lines(folder / "humaneval.jsonl", PROBLEMS)
        yield folder


@pytest.fixture(scope="module")
def results(folder):
    tasks = ["mmlu_here", "hellaswag_here", "texts_here", "answers_here"]
    return benchmarks.benchmark(examinee(), tasks, include_path=folder)


def share(right):
    """A mean of zeros and ones, and its standard error."""
    mean = sum(right) / len(right)
    return mean, math.sqrt(mean * (1 - mean) / (len(right) - 1))


# --- equal to a direct loop -----------------------------------------------------------


@needs_harness
def test_mmlus_format_equals_a_direct_loop(results):
    one = examinee()

    def ask(record):
        choices = zip("ABCD", record["choices"])
        lines = [record["question"].strip(), *(f"{x}. {text}" for x, text in choices)]
        return "\n".join([*lines, "Answer:"])

    examples = "".join(f"{ask(x)} {'ABCD'[x['answer']]}\n\n" for x in MMLU[:2])
    right, fits = [], []
    for record in MMLU:
        context = "The following are multiple choice questions.\n\n" + examples
        context += ask(record)
        fits.append(len(prompt_ids(TOKENIZER, context)) < WINDOW)
        scores = [plain_logprob(one, context, f" {letter}") for letter in "ABCD"]
        right.append(max(range(4), key=scores.__getitem__) == record["answer"])
    assert not all(fits) and 0 < sum(right) < len(right)
    numbers = results["results"]["mmlu_here"]
    assert numbers["acc,none"] == pytest.approx(share(right)[0])
    assert numbers["acc_stderr,none"] == pytest.approx(share(right)[1])


@needs_harness
def test_hellaswags_format_equals_a_direct_loop(results):
    one = examinee()

    def clean(text):
        return re.sub(r"\[.*?\]", "", text.strip()).replace("  ", " ")

    right, right_by_length = [], []
    for record in HELLASWAG:
        context = record["ctx_a"] + " " + record["ctx_b"].capitalize()
        context = clean(f"{record['activity_label']}: {context}")
        endings = [clean(ending) for ending in record["endings"]]
        scores = [plain_logprob(one, context, " " + ending) for ending in endings]
        by_length = [score / len(text) for score, text in zip(scores, endings)]
        for kept, values in ((right, scores), (right_by_length, by_length)):
            kept.append(max(range(4), key=values.__getitem__) == int(record["label"]))
    assert 0 < sum(right) < len(right) and sum(right) != sum(right_by_length)
    numbers = results["results"]["hellaswag_here"]
    for metric, told in (("acc", right), ("acc_norm", right_by_length)):
        assert numbers[f"{metric},none"] == pytest.approx(share(told)[0])
        assert numbers[f"{metric}_stderr,none"] == pytest.approx(share(told)[1])


@needs_harness
def test_perplexity_equals_a_direct_loop_over_the_harness_own_windows(results):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    one, total = examinee(), 0.0
    for text in TEXTS:
        pairs = get_rolling_token_windows(
            token_list=TOKENIZER.encode(text),
            prefix_token=TOKENIZER.bos_id,
            max_seq_len=WINDOW,
            context_len=1,
        )
        for context, continuation in map(make_disjoint_window, pairs):
            ids = [*context, *continuation]
            laws = one.model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
            for back, token in enumerate(reversed(continuation)):
                total += laws[len(ids) - 2 - back, token].item()
    words = sum(len(re.split(r"\s+", text)) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    numbers = results["results"]["texts_here"]
    expected = math.exp(-total / words)
    assert numbers["word_perplexity,none"] == pytest.approx(expected, rel=1e-4)
    expected = -total / size / math.log(2)
    assert numbers["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)


@needs_harness
def test_generation_equals_a_direct_loop(results):
    """Two thirds of the answers are what a direct loop writes."""
    numbers = results["results"]["answers_here"]
    assert numbers["exact_match,none"] == pytest.approx(4 / 6)
    assert numbers["exact_match_stderr,none"] == pytest.approx(math.sqrt(2 / 9 / 5))


# --- code -----------------------------------------------------------------------------


class Programmer(Examinee):
    """Answers the first and the third problem; attacks in the others."""

    asked: list = []

    def generate_until(self, pairs):
        self.asked += pairs
        return [
            "    return x\n",
            "    import os\n    while True: os.fork()\n",
            "    y = 2\n    return x + y\n",
            "    return x + len(open('/etc/passwd').read())\n",
        ][: len(pairs)]


@needs_harness
def test_humaneval_runs_isolated_and_only_if_allowed(folder, monkeypatch):
    import evaluate

    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")  # not enough
    before = evaluate.load
    with pytest.raises(BenchmarkError, match="--allow-code"):
        benchmarks.benchmark(
            examinee(Programmer), ["humaneval_here"], include_path=folder
        )
    assert Programmer.asked == []
    done = benchmarks.benchmark(
        examinee(Programmer), ["humaneval_here"], include_path=folder, allow_code=True
    )
    numbers = done["results"]["humaneval_here"]
    assert numbers["pass@1,create_test"] == 0.5
    assert numbers["pass@1_stderr,create_test"] == pytest.approx(share([1, 0, 1, 0])[1])
    assert [context for context, _ in Programmer.asked] == [
        problem["prompt"] for problem in PROBLEMS
    ]
    assert "\ndef" in Programmer.asked[0][1]["until"]
    Programmer.asked.clear()
    with pytest.raises(BenchmarkError, match="--allow-code"):  # nor because it was once
        benchmarks.benchmark(
            examinee(Programmer), ["humaneval_here"], include_path=folder
        )
    assert Programmer.asked == []
    assert evaluate.load is before and os.environ["HF_ALLOW_CODE_EVAL"] == "1"


@needs_harness
def test_code_that_a_task_runs_by_itself_is_refused_even_if_allowed(folder):
    with pytest.raises(BenchmarkError, match="other_code: runs code by itself"):
        benchmarks.benchmark(
            examinee(), ["other_code"], include_path=folder, allow_code=True
        )


# --- the command ----------------------------------------------------------------------


def make_run(out, tokenizer=TOKENIZER):
    """What the stages leave, without having trained."""
    config = replace(get_preset("smoke").policy, vocab_size=tokenizer.vocab_size)
    models = {"a": PaLM(config, seeded(1)), "b": PaLM(config, seeded(2))}
    policies = {"beta-0.15": models["a"], "beta-0": models["b"]}
    finish_stage(out, "06_palm", {"policy": models["b"]}, tokenizer, scale="smoke")
    tokenizer.save(out / "06_palm" / "tokenizer.json")
    finish_stage(
        out, "11_ppo", policies, tokenizer, scale="smoke", kl_coefs=[0.15, 0.0]
    )
    return models


def test_the_policies_that_a_stage_has_left_are_found(tmp_path):
    models = make_run(tmp_path)
    assert policy_names(tmp_path, "11_ppo") == ["beta-0.15", "beta-0"]
    assert policy_names(tmp_path, "06_palm") == ["policy"]
    for stage, policy, name in (
        ("11_ppo", "beta-0.15", "a"),
        ("11_ppo", "beta-0", "b"),
        ("06_palm", "policy", "b"),
    ):
        one = load_examinee(tmp_path, stage, policy)
        assert one.window == get_preset("smoke").window
        for weight, other in zip(one.model.parameters(), models[name].parameters()):
            assert torch.equal(weight, other)


def test_a_policy_of_adapters_is_found_with_them(tmp_path):
    models = make_run(tmp_path)
    finish_stage(tmp_path, "07_sft", {"policy": models["b"]}, TOKENIZER, scale="smoke")
    policy = fine_tuned(models["b"], MachineConfig(lora_rank=2))
    for weight in adapter_parameters(policy):
        torch.nn.init.normal_(weight, std=0.1, generator=seeded(4))
    said = {"scale": "smoke", "kl_coefs": [0.15], "start": "07_sft"}
    finish_stage(tmp_path, "11_ppo", {"beta-0.15": policy}, TOKENIZER, **said)
    one = load_examinee(tmp_path, "11_ppo", "beta-0.15")
    ids = torch.tensor([[1, 3, 4, 5]])
    assert torch.equal(one.model(ids), policy(ids))
    assert not torch.equal(one.model(ids), models["b"](ids))


@needs_harness
def test_the_command_prints_a_table_and_writes_json(tmp_path, folder, capsys):
    make_run(tmp_path)
    command = ["--run", str(tmp_path), "--tasks", "answers_here,hellaswag_here"]
    assert main([*command, "--include-path", str(folder), "--limit", "4"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"hellaswag_here +acc_norm +0\.\d{4}   ± 0\.\d{4} +4\n", told)
    kept = json.loads((tmp_path / "benchmarks" / "11_ppo.json").read_text())
    assert kept["lm_eval"] and kept["limit"] == 4 and kept["policy"] == "beta-0.15"
    assert kept["n-samples"]["hellaswag_here"] == {"original": 10, "effective": 4}
    assert kept["results"]["hellaswag_here"].keys() >= {"acc,none", "acc_stderr,none"}


@needs_harness
def test_the_three_of_the_plan_run_by_their_own_names(
    tmp_path, folder, capsys, monkeypatch
):
    """The harness's own tasks, with our lines in the place of what the hub has."""
    import datasets

    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name))
        lines = {"cais/mmlu": MMLU, "Rowan/hellaswag": HELLASWAG}.get(path, PROBLEMS)
        data = datasets.Dataset.from_list(lines)
        return {split: data for split in ("train", "validation", "dev", "test")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    make_run(tmp_path)
    command = ["--run", str(tmp_path), "--tasks", "hellaswag,mmlu,humaneval"]
    assert main([*command, "--limit", "2", "--allow-code"]) == 0
    results = json.loads((tmp_path / "benchmarks/11_ppo.json").read_text())["results"]
    places = [path for path, _ in asked]
    assert {"Rowan/hellaswag", "cais/mmlu", "openai/openai_humaneval"} == set(places)
    subjects = [name for path, name in asked if path == "cais/mmlu"]
    assert len(subjects) == len(set(subjects)) == 57
    scores = [results[f"mmlu_{subject}"]["acc,none"] for subject in subjects]
    assert results["mmlu"]["acc,none"] == pytest.approx(sum(scores) / 57)
    assert results["mmlu"]["acc_stderr,none"] >= 0
    assert results["humaneval"]["pass@1,create_test"] == 0  # it has learned nothing
    table = capsys.readouterr().out
    for task in ("hellaswag", "mmlu", "humaneval"):
        assert re.search(
            rf"^{task} .* \d\.\d{{4}}   ± \d\.\d{{4}}", table, re.MULTILINE
        )


def complaint(capsys, *command):
    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out == "" and 1 <= said.err.count("\n") <= 2
    return said.err


def test_what_is_not_installed_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    assert "pip install" in complaint(capsys, "--tasks", "mmlu")


@needs_harness
def test_what_cannot_be_done_is_said_in_two_lines(
    tmp_path, folder, capsys, monkeypatch
):
    import lm_eval.tasks

    run = ("--run", str(tmp_path / "bytes"))
    make_run(tmp_path / "bytes")
    said = complaint(capsys, "--run", str(tmp_path / "none"), "--tasks", "mmlu")
    assert "11_ppo, which has not run to its end" in said
    said = complaint(capsys, *run, "--policy", "c", "--tasks", "mmlu")
    assert "11_ppo has no policy 'c', but beta-0.15, beta-0" in said
    said = complaint(capsys, *run, "--tasks", "mmlu", "--include-path", "nowhere")
    assert "nowhere: there is no such folder" in said
    said = complaint(capsys, *run, "--tasks", "hellaswag,mmlu")
    assert "not on this machine" in said and "Rowan/hellaswag" in said
    here = ("--include-path", str(folder))
    assert "--allow-code" in complaint(capsys, *run, "--tasks", "humaneval_here", *here)

    few = tmp_path / "few"  # not all of the harness's tasks: they take long to read
    few.mkdir()
    theirs = Path(lm_eval.tasks.__file__).parent
    shutil.copy(theirs / "hellaswag" / "hellaswag.yaml", few)
    monkeypatch.setattr(lm_eval.tasks.manager, "__file__", str(few / "manager.py"))
    said = complaint(capsys, *run, "--tasks", "hellaswagg")
    assert "no task 'hellaswagg'. Near it are: hellaswag" in said

    make_run(tmp_path / "words", WordTokenizer(["a", "fox"]))
    run = ("--run", str(tmp_path / "words"))
    said = complaint(capsys, *run, "--tasks", "hellaswag_here", *here)
    assert "is not among the 2 of this tokenizer" in said and "byte pairs" in said
