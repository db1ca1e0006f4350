-- Version 3. database.py runs this once, when the file is new.
--
-- Times are wall time, in seconds since 1970: they survive a reboot. No death rests on them.

BEGIN IMMEDIATE;

-- Raised whenever a worker may have lost a run: by a claim, and by a close or a discard by another
-- worker. A commit names the generation that its worker knows.
CREATE TABLE generation (number INTEGER NOT NULL);
INSERT INTO generation VALUES (0);

-- `beat` counts renewals: others see a worker stand still without comparing clocks.
CREATE TABLE worker (
  name TEXT PRIMARY KEY,
  app TEXT NOT NULL,
  beat INTEGER NOT NULL DEFAULT 0,
  seen REAL NOT NULL,
  has_left INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- A discarded run has no name any more; the keeper deletes it. `unique_key` is NULL when an end has
-- freed it. `owner`, `key` and `source` are what runs are selected by, and `started`, in µs since
-- 1970, is what they are sorted by. `info` does not have the arguments.
--
-- A topic has '' as its producer, and in `size` the bytes of its frames; it expires unless that is
-- postponed. What has expired never comes back.
CREATE TABLE run (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  app TEXT NOT NULL,
  name TEXT,
  unique_key TEXT,
  owner TEXT,
  key TEXT,
  source TEXT NOT NULL,
  started INTEGER NOT NULL,
  status TEXT NOT NULL DEFAULT 'running',
  producer TEXT NOT NULL,
  "window" INTEGER NOT NULL,
  retain REAL NOT NULL,
  drops_oldest INTEGER NOT NULL,
  size INTEGER NOT NULL DEFAULT 0,
  expires REAL,
  info BLOB NOT NULL,
  arguments TEXT
);
CREATE UNIQUE INDEX run_name ON run (app, name);
CREATE UNIQUE INDEX run_unique_key ON run (app, unique_key) WHERE unique_key IS NOT NULL;
CREATE INDEX run_owner ON run (app, owner, key) WHERE owner IS NOT NULL;
CREATE INDEX run_key ON run (app, key) WHERE key IS NOT NULL;
CREATE INDEX run_producer ON run (producer) WHERE status = 'running';
CREATE INDEX run_expires ON run (expires) WHERE expires IS NOT NULL;

-- The frames of one run in one commit, back to back. `last` is the number of the last event, `ends`
-- are the offsets at which the frames end, as 32-bit integers. Without AUTOINCREMENT the id of a
-- deleted newest row would be used again, and readers that look for newer ids would miss that row.
CREATE TABLE batch (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  run INTEGER NOT NULL,
  last INTEGER NOT NULL CHECK (last < 9007199254740992),
  status TEXT,
  frees_key INTEGER NOT NULL,
  ends BLOB NOT NULL,
  frames BLOB NOT NULL
);
CREATE UNIQUE INDEX batch_last ON batch (run, last);

-- So one statement stores the `end` event and the status, frees the key and drops the arguments.
CREATE TRIGGER batch_end AFTER INSERT ON batch WHEN NEW.status IS NOT NULL BEGIN
  UPDATE run
  SET
    status = NEW.status,
    arguments = NULL,
    unique_key = CASE WHEN NEW.frees_key THEN NULL ELSE unique_key END,
    expires = (julianday('now') - 2440587.5) * 86400.0
      + CASE NEW.status WHEN 'refused' THEN 10 ELSE retain END
  WHERE id = NEW.run;
END;

-- A change of a cursor is a new id. `after` is NULL when the worker has no readers any more.
CREATE TABLE cursor (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  run INTEGER NOT NULL,
  worker TEXT NOT NULL,
  after INTEGER,
  readers INTEGER NOT NULL,
  UNIQUE (run, worker)
);

PRAGMA application_id = 1400137037;
PRAGMA user_version = 3;

COMMIT;
