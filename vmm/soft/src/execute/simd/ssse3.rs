//! SSSE3 and SSE4.1 integer operations, lane by lane: the host need not have them.
