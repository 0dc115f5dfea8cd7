import codecs
import gzip
import io
import os
import pickle
import tarfile
import tracemalloc

import pytest
from PIL import Image
from skimage import data

from s2wrap import S2WrapError
from s2wrap.extraction.decode import decode
from s2wrap.extraction.picture import START, Mark
from s2wrap.extraction.sources import count_pictures, find_sections, pictures_after, pieces_after
from s2wrap.images import load_image

CAT = Image.fromarray(data.chelsea()[:40, :60])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    (folder / "b" / "c").mkdir(parents=True)
    for name in ("z.JPG", "b/a.png", "b/c/x.tif", "b.png"):
        CAT.save(folder / name)
    (folder / "notes.md").touch()
    return folder


def names(*addresses, after=START):
    return [picture.name for picture in pictures_after(find_sections([str(part) for part in addresses]), after)]


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(image=CAT):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_a_folder_is_searched_all_the_way_down_in_the_order_of_sorted_paths(folder):
    expected = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".tif"))
    assert names(folder) == [str(path) for path in expected]
    assert len(expected) == 4
    assert count_pictures(find_sections([str(folder)])) == 4


def test_links_that_lead_in_circles_are_not_followed(folder):
    (folder / "b" / "loop").symlink_to(folder)
    assert len(names(folder)) == 4


def test_patterns_lists_and_files_name_the_same_pictures(folder, tmp_path):
    expected = names(folder)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(expected) + "\n\n")
    assert names(listed) == expected
    assert names(*expected) == expected
    assert sorted(names(folder / "**" / "*.???")) == sorted(expected)
    assert names(f"file://{folder}") == [f"file://{name}" for name in expected]


def test_a_parquet_list_has_a_column_path(folder, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    expected, listed = names(folder), tmp_path / "list.parquet"
    parquet.write_table(pyarrow.table({"path": expected, "label": [0] * 4}), listed)
    assert names(listed) == expected
    parquet.write_table(pyarrow.table({"file": expected}), listed)
    with pytest.raises(S2WrapError, match='has columns file; a list needs one "path"'):
        names(listed)


def test_a_file_with_wild_letters_in_its_name_is_a_file(tmp_path):
    CAT.save(tmp_path / "a[1].png")
    assert names(tmp_path / "a[1].png") == [str(tmp_path / "a[1].png")]


def test_joined_tars_and_huge_headers_are_told(tmp_path):
    one, two = (write_tar(tmp_path / f"{name}.tar", [(f"{name}.png", png())]) for name in "ab")
    joined = tmp_path / "joined.tar"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    first, problem = pictures_after(find_sections([str(joined)]), START)
    assert first.name.endswith("joined.tar/a.png")
    assert "joined.tar: damaged or cut short after 1 pictures" in problem.problem
    assert "more follows behind its end" in problem.problem
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        with gzip.open(tmp_path / "bomb.tar.gz", "wb") as stream:
            info = tarfile.TarInfo("x")
            info.type, info.size = kind, 50 << 20
            stream.write(info.tobuf())
            stream.write(bytes(50 << 20))
        tracemalloc.start()
        (problem,) = pictures_after(find_sections([str(tmp_path / "bomb.tar.gz")]), START)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "a header of 52428800 bytes" in problem.problem
        assert peak < 20 << 20


def test_files_of_macos_lists_and_stores_are_not_pictures(folder, tmp_path):
    (folder / "._z.png").write_bytes(b"macOS")
    (folder / "readme.txt").write_text("see there")
    (folder / "Thumbs.db").write_bytes(b"?")
    (folder / "store.zarr").mkdir()
    (folder / "store.zarr.s2wrap").mkdir()
    assert names(folder / "*") == names(folder)
    assert not any("._z" in name for name in names(folder))
    (folder / "list.txt").write_bytes(codecs.BOM_UTF8 + b"one.png\r\ntwo.png")
    assert names(folder / "lis*.txt") == ["one.png", "two.png"]
    (folder / "list.txt").write_bytes("one.png".encode("utf-16"))
    with pytest.raises(S2WrapError, match="list.txt is UTF-16; save the list as UTF-8"):
        names(folder / "list.txt")


def test_a_picture_named_in_two_ways_is_named_twice(folder):
    with pytest.raises(S2WrapError, match="is named twice"):
        count_pictures(find_sections([f"{folder}/b.png", f"{folder}/./b.png"]))


def test_a_column_path_of_numbers_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"path": [1, 2]}), tmp_path / "list.parquet")
    with pytest.raises(S2WrapError, match="has a column path of int64; a list needs texts"):
        names(tmp_path / "list.parquet")


def test_addresses_of_fsspec_are_searched_too():
    import fsspec

    files = fsspec.filesystem("memory")
    for name in ("/sources/b.png", "/sources/a/c.png", "/sources/notes.md"):
        files.pipe(name, png())
    files.pipe("/lists/list.txt", b"memory://sources/b.png\n")
    assert names("memory://sources") == ["memory://sources/a/c.png", "memory://sources/b.png"]
    assert names("memory://sources/*.png") == ["memory:///sources/b.png"]
    (picture,) = pictures_after(find_sections(["memory://lists/list.txt"]), START)
    assert (decode(picture).image.permute(1, 2, 0).numpy() == data.chelsea()[:40, :60]).all()
    with pytest.raises(S2WrapError, match="memory://none: there is no such file or folder"):
        names("memory://none")
    with pytest.raises(S2WrapError, match="Protocol not known"):
        names("nonsense://x")


def test_tars_are_read_member_by_member_and_nothing_is_unpacked(tmp_path, monkeypatch):
    members = [("0001.png", png()), ("0001.json", b"{}"), ("../../escape.png", png()), ("/etc/abs.JPEG", png())]
    path = write_tar(tmp_path / "shard.tar", members)
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    before = sorted(tmp_path.rglob("*"))
    pictures = list(pictures_after(find_sections([str(path)]), START))
    assert [p.name for p in pictures] == [f"{path}/0001.png", f"{path}/../../escape.png", f"{path}//etc/abs.JPEG"]
    assert [p.content for p in pictures] == [png()] * 3
    assert sorted(tmp_path.rglob("*")) == before
    assert count_pictures(find_sections([str(path)])) is None
    packed = write_tar(tmp_path / "shard.tar.gz", members, "w:gz")
    assert [p.content for p in pictures_after(find_sections([str(packed)]), START)] == [png()] * 3


def test_a_tar_that_is_gone_stops_the_run(tmp_path):
    sections = find_sections([str(write_tar(tmp_path / "shard.tar", [("a.png", png())]))])
    (tmp_path / "shard.tar").unlink()
    with pytest.raises(S2WrapError, match="shard.tar cannot be read: FileNotFoundError"):
        list(pictures_after(sections, START))


def test_links_in_a_tar_are_passed_over(tmp_path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "a.png"), (tarfile.DIRTYPE, "")):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, target
            tar.addfile(info)
    assert names(path) == []


def test_a_name_that_is_twice_in_a_tar_stands_for_the_first(tmp_path):
    path = write_tar(tmp_path / "shard.tar", [("a.png", b"first"), ("a.png", b"second")])
    first, second = pictures_after(find_sections([str(path)]), START)
    assert first.content == b"first"
    assert "a second time" in second.problem
    assert second.name != first.name


@pytest.mark.parametrize("kept", [0.3, 0.55, 0.8])
def test_a_tar_cut_short_gives_what_is_before_and_a_problem(tmp_path, kept):
    path = write_tar(tmp_path / "shard.tar", [(f"{number}.png", bytes(3000)) for number in range(10)])
    content = path.read_bytes()
    path.write_bytes(content[: round(10 * 3584 * kept)])
    *whole, last = pictures_after(find_sections([str(path)]), START)
    assert len(whole) == int(10 * kept)
    assert last.name == str(path)
    assert f"damaged or cut short after {len(whole)} pictures" in decode(last).failure.reason


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "shard.tar", [(f"{number}.png", bytes(3000)) for number in range(10)])
    content = bytearray(path.read_bytes())
    content[5 * 3584 : 5 * 3584 + 100] = b"x" * 100
    path.write_bytes(content)
    *whole, last = pictures_after(find_sections([str(path)]), START)
    assert len(whole) == 5
    assert "damaged" in last.problem


def test_members_too_large_for_the_memory_are_problems(tmp_path, monkeypatch):
    monkeypatch.setattr("s2wrap.extraction.tars.LARGEST", 10)
    (picture,) = pictures_after(find_sections([str(write_tar(tmp_path / "a.tar", [("a.png", png())]))]), START)
    assert picture.content is None
    assert "more than the 10" in picture.problem


def test_bytes_are_decoded_as_the_file_is(folder, tmp_path):
    paths = [folder / "z.JPG", folder / "b/c/x.tif"]
    path = write_tar(tmp_path / "shard.tar", [(file.name, file.read_bytes()) for file in paths])
    for file, picture in zip(paths, pictures_after(find_sections([str(path)]), START), strict=True):
        assert (decode(picture).image == load_image(file)).all()


@pytest.mark.parametrize("done", range(1, 9))
def test_what_comes_after_a_mark_is_the_rest(folder, tmp_path, done):
    tars = [write_tar(tmp_path / f"{n}.tar", [(f"{n}-{m}.png", png()) for m in range(3)]) for n in range(2)]
    sources = [folder, *tars, write_tar(tmp_path / "empty.tar", [])]
    sections = find_sections(map(str, sources))
    everything = list(pictures_after(sections, START))
    assert len(everything) == 10
    assert list(pictures_after(sections, everything[done - 1].mark)) == everything[done:]


def test_finished_tars_are_not_opened_again(tmp_path):
    tars = [write_tar(tmp_path / f"{n}.tar", [(f"{n}-{m}.png", png()) for m in range(3)]) for n in range(2)]
    everything = list(pictures_after(find_sections(map(str, tars)), START))
    tars[0].write_bytes(b"")
    assert [p.name for p in pictures_after(find_sections(map(str, tars)), everything[3].mark)] == [
        p.name for p in everything[4:]
    ]


def test_other_pictures_than_before_are_refused_and_new_ones_at_the_end_follow(folder):
    everything = list(pictures_after(find_sections([str(folder)]), START))
    mark = everything[2].mark
    CAT.save(folder / "zz.png")
    assert names(folder, after=mark) == [str(folder / "z.JPG"), str(folder / "zz.png")]
    CAT.save(folder / "a.png")
    with pytest.raises(S2WrapError, match="the pictures are not those that the store was begun with"):
        names(folder, after=mark)
    (folder / "a.png").unlink()
    (folder / "b" / "a.png").unlink()
    with pytest.raises(S2WrapError, match="not those"):
        names(folder, after=mark)
    with pytest.raises(S2WrapError, match="there are fewer now"):
        names(folder / "b", after=mark)
    with pytest.raises(S2WrapError, match="there are fewer now"):
        names(folder / "b", after=Mark(3, 1, "x"))


def test_a_picture_or_tar_named_twice_is_refused(folder, tmp_path):
    with pytest.raises(S2WrapError, match=r"a.png is named twice"):
        count_pictures(find_sections([str(folder), str(folder / "b" / "a.png")]))
    listed = tmp_path / "list.txt"
    listed.write_text("x.png\ny.png\nx.png\n")
    with pytest.raises(S2WrapError, match=r"x.png is named twice"):
        count_pictures(find_sections([str(listed)]))
    tar = write_tar(tmp_path / "a.tar", [])
    with pytest.raises(S2WrapError, match=r"a.tar is named twice"):
        count_pictures(find_sections([str(tar), str(tar)]))


def test_names_that_are_no_text_are_kept(tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    CAT.save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", odd)
    (tmp_path / "list.txt").write_bytes(odd + b"\n")
    assert names(tmp_path) == names(tmp_path / "list.txt") == [os.fsdecode(odd)]


def test_what_is_not_there_says_so(tmp_path):
    with pytest.raises(S2WrapError, match="no such file or folder"):
        names(tmp_path / "none")
    with pytest.raises(S2WrapError, match="the pattern names no picture, tar or folder"):
        names(tmp_path / "*.png")
    with pytest.raises(S2WrapError, match="no file has a name of 300 characters"):
        names("x" * 300)
    (tmp_path / "empty").mkdir()
    with pytest.raises(S2WrapError, match="no picture in .*empty; endings read: .jpg.*tars in a folder"):
        count_pictures(find_sections([str(tmp_path / "empty")]))


def test_pieces_read_in_another_process_give_the_same_pictures_after_every_mark(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    tars = [write_tar(tmp_path / f"{n}.tar", [(f"{m}.png", png()) for m in range(3)]) for n in range(2)]
    sections = find_sections(map(str, [tmp_path / "empty", folder, *tars, tmp_path / "empty", folder / "b.png"]))
    everything = list(pictures_after(sections, START))
    assert len(everything) == 4 + 2 * 3 + 1
    for done in range(len(everything) + 1):
        mark = everything[done - 1].mark if done else START
        for files in (1, 3, 100):
            sent = [pickle.dumps(piece) for piece in pieces_after(sections, mark, files=files)]
            assert [picture for piece in sent for picture in pickle.loads(piece)()] == everything[done:]


def test_a_piece_is_a_tar_or_so_many_files_and_its_bytes_are_read_only_by_whoever_calls_it(folder, tmp_path):
    path = write_tar(tmp_path / "shard.tar", [("a.png", png())])
    files, more, tar = pieces_after(find_sections([str(folder), str(path)]), START, files=3)
    assert [len(list(piece())) for piece in (files, more)] == [3, 1]
    path.unlink()
    with pytest.raises(S2WrapError, match="shard.tar cannot be read"):
        list(tar())
