"""Lua scripts: the steps on the queue, leases and leadership that must be atomic in Redis."""

# If a job is neither leased, queued nor parked, remove what Redis still holds of it, so that it can be queued again.
# KEYS: the lease; the queue; the jobs popped from it; RQ's record of the job; all parked jobs. ARGV: the job.
DROP_LOST_JOB = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if redis.call('LPOS', KEYS[2], ARGV[1]) or redis.call('HEXISTS', KEYS[5], ARGV[1]) == 1 then return 0 end
redis.call('LREM', KEYS[3], 0, ARGV[1])
redis.call('DEL', KEYS[4])
return 1
"""

# Take the lease of a job that has none. If its owner has as many jobs running as allowed, park the job instead.
# KEYS: the lease; the owner's leases as a sorted set, execution -> expiry; the owner's parked jobs; all parked jobs.
# ARGV: execution; milliseconds; the owner's limit of running jobs (0: no limit); the job; the owner.
TAKE_LEASE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[3] ~= '0' and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then
  redis.call('ZADD', KEYS[3], 0, ARGV[4])
  redis.call('HSET', KEYS[4], ARGV[4], ARGV[5])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
return 1
"""

# Renew a lease only if this execution holds it.
RENEW_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# Release a lease only if this execution holds it, and move the owner's oldest parked job to the front of the queue.
# KEYS: the lease; the owner's leases; the owner's parked jobs; all parked jobs; the queue; the owner's last unparked
# job. ARGV: execution.
RELEASE_LEASE = """
redis.call('ZREM', KEYS[2], ARGV[1])
local parked = redis.call('ZPOPMIN', KEYS[3])
if parked[1] then
  redis.call('HDEL', KEYS[4], parked[1])
  redis.call('LPUSH', KEYS[5], parked[1])
  redis.call('SET', KEYS[6], parked[1], 'EX', 86400)
end
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

# Move an owner's oldest parked job to the front of the queue if the owner has fewer jobs running than allowed, unless
# the last one moved is still there. Needed where no release does it: a worker died, or the limit was raised.
# KEYS: the owner's leases; the owner's parked jobs; all parked jobs; the queue; the owner's last unparked job.
# ARGV: the owner's limit of running jobs (0: no limit).
UNPARK = """
local time = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
if ARGV[1] ~= '0' and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
local last = redis.call('GET', KEYS[5])
if last and redis.call('LPOS', KEYS[4], last) then return 0 end
local parked = redis.call('ZPOPMIN', KEYS[2])
if not parked[1] then return 0 end
redis.call('HDEL', KEYS[3], parked[1])
redis.call('LPUSH', KEYS[4], parked[1])
redis.call('SET', KEYS[5], parked[1], 'EX', 86400)
return 1
"""

# Become or remain the leader, unless another worker is.
LEAD = """
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
RESIGN = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
