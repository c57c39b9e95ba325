"""Folders of task files for lm-eval: what is broken in them is named before anything is asked."""

import pytest

from research.evaluation.lm_eval_folder import check_folder


def test_broken_task_files_are_named_and_so_is_code_that_they_run(tmp_path):
    """lm-eval passes over a file that it cannot read, and says that there is no such task; of two
    files of one task it takes one."""
    (tmp_path / "b").mkdir()
    task, other = tmp_path / "a.yaml", tmp_path / "b" / "c.yaml"
    task.write_text("task: mine\ndoc_to_text: !function utils.text\n")
    other.write_text("group: all\ntask: [mine]\n")
    assert check_folder(str(tmp_path)) == [f"{task}: utils.text"]
    for content, error in (
        (b"task: [", "c.yaml: no YAML of a task: .*expected"),
        (b"", "c.yaml: it is empty"),
        (b"\xff\xfe\x00", "c.yaml: no YAML"),
        (b"task: !!python/object/apply:os.getcwd []", "c.yaml: no YAML .*python/object"),
        (b"a: " + b"[" * 9999, "c.yaml: no YAML"),
        (b"task: mine\n", "c.yaml and .*a.yaml are both of the task mine"),
    ):
        other.write_bytes(content)
        with pytest.raises(ValueError, match=error):
            check_folder(str(tmp_path))
    with pytest.raises(ValueError, match="is no folder"):
        check_folder(str(task))
