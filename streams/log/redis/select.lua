-- Selects the newest runs of an owner, or with a key. Drops from the index those that are gone.
--
-- ARGV: worker, selection (JSON: Selection in log/__init__.py), with an owner, a key or a key_prefix
-- Returns a list of states, as state() in common.lua, newest first.

-- Whether the place of a run, its start and its id, is before another one in the list.
local function is_before(a, b) return a[1] > b[1] or (a[1] == b[1] and a[2] > b[2]) end

local selection = cjson.decode(ARGV[2])
local owner, prefix, exact = selection.owner, selection.key_prefix, selection.key
local index, members = KEYS_INDEX, nil
if owner and owner ~= cjson.null then
  index = key('owner', owner)
  members = redis.call('ZRANGE', index, 0, -1)
elseif exact then
  members = redis.call('ZRANGEBYLEX', index, '[' .. exact .. '\0', '(' .. exact .. '\1')
else
  members = redis.call('ZRANGEBYLEX', index, '[' .. prefix, '(' .. prefix .. '\127')
end
local selected = {}
for _, member in ipairs(members) do
  local run = run_of(member)
  local fields = redis.pcall('HMGET', key('run', run), 'info', 'status', 'started')
  if fields.err or not fields[1] then
    redis.call('ZREM', index, member)
  else
    local status, place = fields[2], {tonumber(fields[3]) or 0, run}
    local is_json, info = pcall(cjson.decode, fields[1])
    if is_json and type(info) == 'table' and status ~= 'refused'
      and (not selection.after or is_before(selection.after, place))
      and (not selection.status or selection.status == status)
      and (not owner or owner == info.owner)
      and (not selection.source or selection.source == info.source)
      and (not exact or exact == info.key)
      and (not prefix or (type(info.key) == 'string' and info.key:sub(1, #prefix) == prefix))
    then
      selected[#selected + 1] = place
    end
  end
end
table.sort(selected, is_before)
local states = {}
for i = 1, math.min(#selected, selection.limit) do states[i] = state(selected[i][2]) end
return states
