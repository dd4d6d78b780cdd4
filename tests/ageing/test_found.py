"""What the ageing has found, each told by the shortest schedule that shows it."""

from nanobanana_pipeline.generation.budget.counters import partition_scope
from nanobanana_pipeline.generation.budget.reservations import ShardBudget
from nanobanana_pipeline.generation.engine.reconcile import Reconciler
from nanobanana_pipeline.generation.engine.work_queue import Downloadable
from nanobanana_pipeline.generation.planning.run_files import PlannedRequest, write_shards
from nanobanana_pipeline.ledger import Entry, Held, Ledger, State
from nanobanana_pipeline.money import Budget, Cap
from nanobanana_pipeline.provider.outcomes import Done
from nanobanana_pipeline.webhooks.inbox import Inbox
from tests.ageing.scheduler import EPOCH
from tests.ageing.world import KEYS, REQUESTS, World

LEASE = 150.0


def peaceful() -> World:
    return World(lambda _: 0, steps=0, faults=())


def claimed(world: World) -> Held:
    held = Ledger(world.store).claim(
        None,
        Entry.new(REQUESTS[0], KEYS[0], realm="test"),
        run_id="run",
        nonce="0" * 16,
        lease_seconds=LEASE,
    )
    assert held is not None
    return held


def test_a_fresh_claim_is_not_taken_for_an_old_one_by_a_reader_who_was_frozen() -> None:
    world, found = peaceful(), []
    with world.patched():
        reader = world.scheduler.start(
            "reader", lambda: found.append(Ledger(world.store).read(KEYS[0]))
        )
        world.scheduler.run(reader)
        world.scheduler.now += 1200
        claimed(world)
        world.scheduler.run(reader)
        (held,) = found
        assert held is not None
        assert held.lease_left == LEASE
        assert Ledger(world.store).expire(held).entry.state is State.SUBMITTING


def test_an_owner_whose_claim_lost_its_answer_counts_the_lease_from_before_it_wrote() -> None:
    world, found = peaceful(), []
    world.s3.healthy = False
    with world.patched():
        owner = world.scheduler.start("owner", lambda: found.append(claimed(world)))
        world.scheduler.run(owner)
        world.scheduler.run(owner, "lost")
        world.scheduler.now += 50
        world.scheduler.run(owner, "slow")
        world.scheduler.now += 50
        world.scheduler.run(owner)
        assert found[0].lease_left <= LEASE - 100


def test_a_lost_picture_without_an_id_is_looked_for_where_it_was_said_to_be() -> None:
    world = peaceful()
    with world.patched():
        ledger, output = Ledger(world.store), ("https://pictures.test/0/0.png",)
        held = ledger.apply(claimed(world), lambda e: e.accept("0" * 16, None, output))
        held = ledger.apply(held, lambda e: e.lose("0" * 16, "HTTP 404"))
        evidence = Reconciler(ledger, world.account().provider, Inbox(world.store))
        assert evidence.reconcile(held) == Downloadable(held, "0" * 16, Done(None, output))
        world.scheduler.now += 24 * 3600
        assert not isinstance(evidence.reconcile(held), Downloadable)


def capped(world: World, run_id: str) -> ShardBudget:
    write_shards(world.store, run_id, [PlannedRequest(KEYS[0], REQUESTS[0])], 1, None)
    scope = partition_scope(world.store, Budget(partition=Cap(images=1)), "set", 1)
    return ShardBudget(
        world.store, lambda _: [scope], price=None, run_id=run_id, shard="shard-0000"
    )


def test_what_a_shard_took_before_a_silence_may_not_be_sent_after_it() -> None:
    world = peaceful()
    with world.patched():
        sleeper, other = capped(world, "sleeper"), capped(world, "other")
        sleeper.open(1)
        permit = sleeper.take(1)
        assert permit is not None
        assert permit.holds()
        world.scheduler.now += 1000
        other.open(1)
        assert other.take(1), "what the sleeper reserved and did not claim is free"
        assert not permit.holds()
        sleeper.beat()
        assert not permit.holds(), "a late heartbeat revives nothing"
        assert sleeper.take(1) is None


def test_an_incarnation_that_is_closed_by_another_grows_no_more() -> None:
    world = peaceful()
    with world.patched():
        sleeper = capped(world, "sleeper")
        sleeper.open(1)
        scope = partition_scope(world.store, Budget(), "set", 1)
        (name,) = scope.read().open
        scope.change(lambda counter: counter.closed(name, 0, EPOCH))
        assert not sleeper.ask_again()
        permit = sleeper.take(1)
        assert permit is not None
        assert not name.endswith(permit.nonce[:8]), "it goes on as another incarnation"
