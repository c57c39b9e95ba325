"""Which way to take: prompt, retrieve, constrain, tune or pretrain; measured, and then advised.

`graft decide` climbs a ladder of ways to answer a task's questions, cheapest first, and says which
to take, why, how sure it is and what would change it.

- `problem` reads a task, `detect` a file that has no config. `rows` puts rows on their sides:
  labels to learn from, 150 or fewer that all ways are chosen by, and those for one last test. Near
  duplicates share a side.
- A rung (`rungs`, one file each) names some ways, given the best so far: so the best template gets
  examples, and what is best then gets a constraint. `baselines` stand beside them.
- `screening` asks the ways of a rung part by part of the same rows, and drops what loses.
- `asking` puts the questions through the evaluation's tasks and its cache: nothing is asked twice,
  and what was killed goes on. `ladder` stops at the target, or where the budget is spent; its
  clock is what was recorded of the answers, so that it stops at the same place again.
- `tuning` searches a rate with all labels and then trains on fewer, `pretraining` has a base read
  the task's texts; both are `trials` of a study, each trained once. `curves`: what labels buy.
- `costs` are what a way takes to build and with each request. `rules` make the advice, a pure
  function of the table. `decision` puts all of it together and asks the test rows, once, for the
  advised way and its runner-up; `page` shows it.
"""
