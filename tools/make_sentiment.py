"""Make `tasks/data/sentiment` from the source distribution of vaderSentiment 0.5.

    pip download vaderSentiment==0.5 --no-deps --no-binary :all:
    python tools/make_sentiment.py vaderSentiment-0.5.zip

The archive contains `additional_resources/hutto_ICWSM_2014.tar.gz` with four tab-separated files `id, mean rating in
[-4, 4], text`. Every row is kept, with its text unchanged; `tasks/sentiment.py` makes labels and splits. With the same
zlib, the files are the same byte for byte.
"""

import argparse
import gzip
import io
import tarfile
import zipfile
from pathlib import Path

SOURCES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
HEADER = "id\trating\ttext\n"


def read_member(archive: zipfile.ZipFile, suffix: str) -> bytes:
    """Return the contents of the only archive member whose name ends in `suffix`."""
    names = [name for name in archive.namelist() if name.endswith(suffix)]
    if len(names) != 1:
        raise ValueError(f"expected one member ending in {suffix!r}, found {names}")
    return archive.read(names[0])


def rows(raw: bytes) -> list[tuple[str, str, str]]:
    """Return (id, rating, text) of each line of a ground-truth file, after checking it."""
    result = []
    for number, line in enumerate(raw.decode("utf-8").split("\n"), 1):
        cells = line.removesuffix("\r").split("\t")
        if len(cells) != 3 or "\r" in line.removesuffix("\r"):
            raise ValueError(f"line {number}: expected id, rating and text, found {cells}")
        identifier, rating, text = cells
        if not -4 <= float(rating) <= 4 or not identifier or not text.strip():
            raise ValueError(f"line {number}: expected an id, a rating in [-4, 4] and a text, found {cells}")
        result.append((identifier, rating, text))
    return result


def write(path: Path, examples: list[tuple[str, str, str]]) -> None:
    """Write a gzipped TSV whose bytes depend only on the examples: its header contains no name or time."""
    text = HEADER + "".join("\t".join(example) + "\n" for example in examples)
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as packed:
        packed.write(text.encode("utf-8"))


def main() -> None:
    """Write the four files and the license."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="path of vaderSentiment-0.5.zip")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tasks" / "data" / "sentiment")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(arguments.sdist) as archive:
        packed = io.BytesIO(read_member(archive, "hutto_ICWSM_2014.tar.gz"))
        (arguments.out / "LICENSE").write_bytes(read_member(archive, "LICENSE.txt").replace(b"\r\n", b"\n"))
    with tarfile.open(fileobj=packed) as inner:
        for domain, name in SOURCES.items():
            member = inner.extractfile(f"hutto_ICWSM_2014/{name}")
            if member is None:
                raise ValueError(f"hutto_ICWSM_2014.tar.gz does not contain the file {name}")
            examples = rows(member.read())
            write(arguments.out / f"{domain}.tsv.gz", examples)
            print(f"{domain}: {len(examples)} rows")


if __name__ == "__main__":
    main()
