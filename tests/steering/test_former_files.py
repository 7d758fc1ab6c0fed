from lightning_failures.steering.former_files import START_OF_FORKS, copy_files, copy_interventions


def test_copy_files__what_is_there_and_nothing_that_is_being_written(tmp_path):
    source, target = tmp_path / "one", tmp_path / "two"
    target.mkdir()
    copy_files(source, target)  # nothing is there
    assert not list(target.iterdir())
    for name in ("interventions/a/notes.txt", "interventions/a/deep/b.bin", "interventions/a/.writing-1.tmp", "c.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / START_OF_FORKS).write_text("weights")
    copy_interventions(source, target)
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert found == ["interventions/a/deep/b.bin", "interventions/a/notes.txt"]
    copy_files(source, target)
    assert (target / START_OF_FORKS).read_text() == "weights"
