"""MovieLens readers, on files of our own in the published layouts, and on the real ones where present."""

from __future__ import annotations

from pathlib import Path

import pytest

from hllm.data.sources.movielens import GENRES_100K, natural_title, read_ml_1m, read_ml_100k, read_ml_csv
from hllm.errors import DataError

EVENTS_100K = b"7\t2\t3\t881250949\n7\t1\t5\t881250949\n8\t1\t4\t891717742\n"
RATINGS_DAT = b"1::2::5::978300760\n1::1::3.5::978300761\n"
MOVIES_DAT = "1::Misérables, Les (1995)::Drama\n2::A::B (1990)::Comedy|War\n"
RATINGS_CSV = b"userId,movieId,rating,timestamp\n1,3,2.5,1260759144\n1,1,4.0,1260759145\n"
MOVIES_CSV = (
    b"movieId,title,genres\n"
    b'1,"American President, The (1995)",Comedy|Drama\n'
    b'3,"The ""Quoted"" One",(no genres listed)\n'
)


def movie_line(item: int, title: str, *genres: str) -> bytes:
    flags = "|".join("1" if g in genres else "0" for g in GENRES_100K)
    return f"{item}|{title}|01-Jan-1995||http://example.com|{flags}\n".encode("latin-1")


MOVIES_100K = movie_line(1, "Café, The (1995)", "Animation", "Children's", "Comedy") + movie_line(
    2, "unknown", "unknown"
)


def write(folder: Path, **files: bytes) -> Path:
    """Files by name, `_` for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def write_100k(folder: Path, data: bytes = EVENTS_100K, item: bytes = MOVIES_100K, **more: bytes) -> Path:
    return write(folder, u_data=data, u_item=item, **more)


def test_ml_100k(tmp_path: Path) -> None:
    tables = read_ml_100k(write_100k(tmp_path, u_user=b"7|24|M|technician|85711\n8|53|F|other|02460\n"))
    assert tables.interactions.rows() == [
        (7, 2, 881250949, 3.0),
        (7, 1, 881250949, 5.0),
        (8, 1, 891717742, 4.0),
    ]
    assert tables.items is not None and tables.users is not None
    assert tables.items.select("item_id", "title", "genres").rows() == [
        (1, "Café, The (1995)", "Animation|Children's|Comedy"),
        (2, "unknown", None),
    ]
    assert tables.users.rows() == [(7, 24, "M", "technician", "85711"), (8, 53, "F", "other", "02460")]
    assert tables.text_fields == ["title", "genres"]
    assert (tables.time_unit, tables.notes, tables.counts) == ("s", [], {})


def test_layout_may_vary(tmp_path: Path) -> None:
    """One folder further in, Windows line ends, a byte-order mark, no users: all the same tables."""
    plain = read_ml_100k(write_100k(tmp_path / "plain"))
    inside = write_100k(
        tmp_path / "outer" / "ml-100k",
        data=b"\xef\xbb\xbf" + EVENTS_100K.replace(b"\n", b"\r\n"),
        item=MOVIES_100K.replace(b"\n", b"\r\n"),
    )
    other = read_ml_100k(inside.parent)
    assert other.users is None
    assert other.interactions.equals(plain.interactions)
    assert plain.items is not None and other.items is not None and other.items.equals(plain.items)


def test_ml_1m(tmp_path: Path) -> None:
    """Titles may hold the separator; the same text comes out of latin-1 and of UTF-8 (case D2)."""
    for name, movies in (("latin", MOVIES_DAT.encode("latin-1")), ("utf", MOVIES_DAT.encode())):
        folder = write(tmp_path / name, ratings_dat=RATINGS_DAT, movies_dat=movies)
        write(folder, users_dat=b"1::F::1::10::48067\n")
        tables = read_ml_1m(folder)
        assert tables.interactions.rows() == [(1, 2, 978300760, 5.0), (1, 1, 978300761, 3.5)]
        assert tables.items is not None and tables.users is not None
        assert tables.items.rows() == [
            (1, "Misérables, Les (1995)", "Drama"),
            (2, "A::B (1990)", "Comedy|War"),
        ]
        assert tables.users.row(0, named=True) == {
            "user_id": 1,
            "gender": "F",
            "age": 1,
            "occupation": 10,
            "zip_code": "48067",
        }


def test_case_d2_title_does_not_depend_on_the_locale(tmp_path: Path, run_python) -> None:  # type: ignore[no-untyped-def]
    """Case D2, in a process whose locale knows ASCII only."""
    write(tmp_path, ratings_dat=RATINGS_DAT, movies_dat=b"73::Mis\xe9rables, Les (1995)::Drama\n1::x::y\n")
    program = (
        "import sys; from hllm.data.sources.movielens import read_ml_1m;"
        "print(ascii(read_ml_1m(sys.argv[1]).items['title'][0]))"
    )
    done = run_python("-c", program, str(tmp_path), LC_ALL="C", PYTHONUTF8="0")
    assert done.stdout.strip() == ascii("Misérables, Les (1995)"), done.stderr


def test_csv_layout(tmp_path: Path) -> None:
    tables = read_ml_csv(write(tmp_path, ratings_csv=RATINGS_CSV, movies_csv=MOVIES_CSV))
    assert tables.interactions.rows() == [(1, 3, 1260759144, 2.5), (1, 1, 1260759145, 4.0)]
    assert tables.items is not None
    assert tables.items.rows() == [
        (1, "American President, The (1995)", "Comedy|Drama"),
        (3, 'The "Quoted" One', None),
    ]


def test_positions_instead_of_times_are_noted(tmp_path: Path) -> None:
    folder = write(tmp_path, ratings_dat=b"1::2::0::0\n1::1::0::1\n", movies_dat=MOVIES_DAT.encode())
    tables = read_ml_1m(folder)
    assert tables.time_unit == "index"
    assert any("positions" in note for note in tables.notes)


def test_missing_last_line_end_is_noted(tmp_path: Path) -> None:
    """A file cut inside its last number still parses; only the missing line end tells."""
    tables = read_ml_100k(write_100k(tmp_path, data=EVENTS_100K[:-4]))
    assert any("u.data does not end with a line end" in note for note in tables.notes)


@pytest.mark.parametrize(
    ("published", "natural"),
    [
        ("Usual Suspects, The (1995)", "The Usual Suspects (1995)"),
        ("Misérables, Les (1995)", "Les Misérables (1995)"),
        ("Avventura, L' (Adventure, The) (1960)", "L'Avventura (The Adventure) (1960)"),
        ("City of Lost Children, The (Cité des enfants perdus, La) (1995)",
         "The City of Lost Children (La Cité des enfants perdus) (1995)"),
        ("Ai no corrida (a.k.a. Realm, The) (1976)", "Ai no corrida (a.k.a. The Realm) (1976)"),
        ("Last Klezmer: His Life and Music, The (1995)", "The Last Klezmer: His Life and Music (1995)"),
        ("Tale, An", "An Tale"),
        ("I, Robot (2004)", "I, Robot (2004)"),
        ("Me, Myself & Irene (2000)", "Me, Myself & Irene (2000)"),
        ("Good, the Bad (1966)", "Good, the Bad (1966)"),
    ],
)  # fmt: skip
def test_natural_title(published: str, natural: str) -> None:
    assert natural_title(published) == natural


def test_natural_titles_option(tmp_path: Path) -> None:
    tables = read_ml_100k(write_100k(tmp_path), natural_titles=True)
    assert tables.items is not None
    assert tables.items["title"].to_list() == ["The Café (1995)", "unknown"]


@pytest.mark.parametrize(
    ("data", "item", "message"),
    [
        (b"", MOVIES_100K, "u.data is empty"),
        (b"\n\n", MOVIES_100K, "u.data is empty"),
        (EVENTS_100K + b"\0", MOVIES_100K, "not a text file: byte 0 at offset"),
        (b"PK\x03\x04zip", MOVIES_100K, "a ZIP archive"),
        (EVENTS_100K + b"8\t2\t", MOVIES_100K, r"u.data line 4.*cut short"),
        (EVENTS_100K.replace(b"\t", b","), MOVIES_100K, "line 1: expected user_id"),
        (b"user\titem\trating\ttime\n" + EVENTS_100K, MOVIES_100K, "user_id 'user' is not a number"),
        (EVENTS_100K + b"8\t2\t3\tsoon\n", MOVIES_100K, "line 4: timestamp 'soon' is not a number"),
        (EVENTS_100K, b"", "u.item is empty"),
        (EVENTS_100K, MOVIES_100K[:-9], r"u.item line 2: expected 24 fields.*cut short"),
        (EVENTS_100K, b"x" + MOVIES_100K, "u.item line 1.*integer id"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, data: bytes, item: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_ml_100k(write_100k(tmp_path, data=data, item=item))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ratings", "movies", "message"),
    [
        (b"1,3,2.5,1260759144\n", MOVIES_CSV, "no column 'userId'"),
        (RATINGS_CSV + b"1,3,2.5,1.5\n", MOVIES_CSV, "line 4: timestamp '1.5'"),
        (RATINGS_CSV + b"1,3,2.5\n", MOVIES_CSV, "line 4: expected userId,movieId,rating,timestamp"),
        (
            RATINGS_CSV,
            MOVIES_CSV + b"4,Mis\xe9rables,Drama\n",
            rf"0xe9 at offset {len(MOVIES_CSV) + 5} .*--encoding latin-1",
        ),
        (RATINGS_CSV, MOVIES_CSV + b"x,Up,Drama\n", "movieId 'x' of 'Up' is not an integer"),
        (RATINGS_CSV, MOVIES_CSV + b"4,Up\n", "movies.csv line 4: 2 fields where 3"),
    ],
)
def test_bad_csv_files_are_named(tmp_path: Path, ratings: bytes, movies: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_ml_csv(write(tmp_path, ratings_csv=ratings, movies_csv=movies))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no u\.item; it holds: u\.data.*hllm data fetch ml-100k"):
        read_ml_100k(write(tmp_path, u_data=EVENTS_100K))
    with pytest.raises(DataError, match="does not exist"):
        read_ml_100k(tmp_path / "absent")
    with pytest.raises(DataError, match="is a file; give the folder"):
        read_ml_100k(tmp_path / "u.data")


def test_real_files(shared_data: Path) -> None:
    tables = read_ml_100k(shared_data / "ml-100k")
    assert tables.items is not None and tables.users is not None
    assert (tables.interactions.height, tables.items.height, tables.users.height) == (100_000, 1_682, 943)
    assert tables.items.row(0)[:3] == (1, "Toy Story (1995)", "Animation|Children's|Comedy")
    small = read_ml_csv(shared_data / "ml-latest-small")
    assert small.items is not None
    assert (small.interactions.height, small.items.height) == (100_004, 9_125)
    assert set(small.interactions["rating"].unique()) == {0.5 * i for i in range(1, 11)}
