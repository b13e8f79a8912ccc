from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from batchrun.endpoint.protocol import JobStatus
from batchrun.local.queue import JobQueue


def queue(workers: int = 1, jobs_per_worker: int = 1) -> JobQueue:
    return JobQueue(workers, jobs_per_worker, name="test")


def test_jobs_start_in_the_order_of_their_submission_and_say_how_long_they_took():
    jobs = queue()
    first, second = jobs.submit({"n": 1}, {}, 0.0), jobs.submit({"n": 2}, {}, 1.0)
    assert jobs.take(2.0) is first
    assert jobs.take(2.0) is None
    assert second.answer().status is JobStatus.IN_QUEUE
    jobs.complete(first, first.run, ["out"], 5.0)
    answer = jobs.find(first.id, 5.0).answer()
    assert (answer.status, answer.delay_ms, answer.execution_ms, answer.output) == (
        JobStatus.COMPLETED,
        2000.0,
        3000.0,
        ["out"],
    )
    assert jobs.take(5.0) is second


def test_a_result_is_gone_thirty_minutes_after_the_end():
    jobs = queue()
    job = jobs.submit({"n": 1}, {}, 0.0)
    jobs.take(0.0)
    jobs.complete(job, job.run, 1, 100.0)
    assert jobs.find(job.id, 1899.9) is job
    assert jobs.find(job.id, 1900.0) is None


def test_a_job_is_gone_at_its_ttl_even_at_work_and_its_worker_is_free_again():
    jobs = queue()
    job = jobs.submit({"n": 1}, {"ttl": 60_000}, 0.0)
    jobs.take(0.0)
    assert jobs.find(job.id, 60.0) is None
    after = jobs.submit({"n": 2}, {}, 61.0)
    assert jobs.take(61.0) is after
    jobs.complete(job, 1, "late", 62.0)
    assert jobs.find(job.id, 62.0) is None


def test_a_job_that_waited_beyond_its_ttl_is_never_started():
    jobs = queue()
    jobs.submit({"n": 1}, {"ttl": 10_000}, 0.0)
    assert jobs.take(11.0) is None
    assert jobs.health()[0].in_queue == 0


def test_a_cancelled_job_stays_cancelled_when_its_worker_answers_late():
    jobs = queue()
    job = jobs.submit({"n": 1}, {}, 0.0)
    jobs.take(0.0)
    jobs.cancel(job.id, 1.0)
    jobs.complete(job, 1, "late", 2.0)
    assert (job.status, job.has_output) == (JobStatus.CANCELLED, False)
    assert jobs.health()[0].in_progress == 0


def test_a_failed_job_is_retried_under_its_id_without_its_old_output():
    jobs = queue()
    job = jobs.submit({"n": 1}, {}, 0.0)
    jobs.take(0.0)
    jobs.fail(job, 1, "boom", 1.0)
    assert jobs.retry(job.id, 2.0).status is JobStatus.IN_QUEUE
    assert jobs.take(3.0) is job
    jobs.complete(job, job.run, "fine", 4.0)
    assert (job.answer().output, job.answer().error) == ("fine", None)
    assert jobs.retry(job.id, 5.0).status is JobStatus.COMPLETED


def test_an_empty_input_is_dropped_by_the_platform():
    job = queue().submit({}, {}, 0.0)
    assert (job.status, job.error) == (JobStatus.FAILED, "job timed out after 1 retries")


def test_purging_drops_what_waits_and_leaves_what_is_at_work():
    jobs = queue()
    working, waiting = jobs.submit({"n": 1}, {}, 0.0), jobs.submit({"n": 2}, {}, 0.0)
    jobs.take(0.0)
    assert jobs.purge() == 1
    assert jobs.find(waiting.id, 1.0) is None
    assert jobs.find(working.id, 1.0) is working


def test_ended_jobs_do_not_pile_up():
    jobs = queue()
    for n in range(1000):
        job = jobs.submit({"n": n}, {}, n * 60.0)
        jobs.take(n * 60.0)
        jobs.complete(job, job.run, n, n * 60.0)
    assert len(jobs) <= 31


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3))
def test_slots_and_counts_add_up_under_any_sequence_of_operations(seed, workers, jobs_per_worker):
    rng, jobs, now, known = Random(seed), queue(workers, jobs_per_worker), 0.0, []
    running = []
    for _ in range(120):
        now += rng.choice([0.0, 1.0, 30.0, 700.0])
        match rng.randrange(7):
            case 0 | 1:
                known.append(jobs.submit({"n": 1}, rng.choice([{}, {"ttl": 20_000}]), now))
            case 2:
                job = jobs.take(now)
                if job is not None:
                    running.append((job, job.run))
            case 3 if running:
                job, run = running.pop(rng.randrange(len(running)))
                rng.choice([jobs.complete, jobs.fail])(job, run, "x", now)
            case 4 if known:
                jobs.cancel(rng.choice(known).id, now)
            case 5 if known:
                jobs.retry(rng.choice(known).id, now)
            case 6 if known:
                jobs.find(rng.choice(known).id, now)
        health, _ = jobs.health()
        alive = [job for job in jobs._jobs.values() if job.status is JobStatus.IN_PROGRESS]
        assert health.in_progress == len(alive) <= workers * jobs_per_worker
        assert health.in_queue == sum(job.status is JobStatus.IN_QUEUE for job in jobs._jobs.values())
        assert health.idle + health.running == workers
