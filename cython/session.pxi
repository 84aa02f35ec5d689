# One client's session: how it begins, fails and ends.  Runs in workers.


cdef void session_reset(Session *session) noexcept nogil:
    """As every session begins."""
    memset(session, 0, sizeof(Session))
    session.client = -1
    session.most = OFFERED


cdef void session_fail(Core *core, const char *problem) noexcept nogil:
    core.session.wake = WAKE_CLIENT_FAILED
    snprintf(core.session.problem, PROBLEM_SIZE, "%s", problem)


cdef bint session_close(Core *core) noexcept nogil:
    """Takes all URBs back, unanswered, and forgets the client; False: the device keeps some."""
    cdef bint drained
    cdef int i
    core.session.closing = True
    drained = inflight_drain(core, -1)
    requests_withdraw_held(core)
    core.session.closing = False
    if drained:
        pool_give_all(&core.pool, core.session.incoming)
        pool_give_all(&core.pool, core.session.outbox)
        for i in range(16):
            pool_give_all(&core.pool, core.session.bulk[i].first)
        pool_give_all(&core.pool, core.session.early)
        pool_empty(&core.pool, core.backend)
        session_reset(&core.session)
    return drained
