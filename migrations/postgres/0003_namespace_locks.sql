-- Empty tables whose locks stand for namespaces: each namespace has one of them, by a hash of its name. A commit locks those of the
-- namespaces that it writes, and excludes other commits from those in which it read ranges or absent rows. An advisory lock
-- would do as well, but some engines that speak Postgres' protocol have none, or take it without effect.
CREATE TABLE larder_namespace_lock_0 ();
CREATE TABLE larder_namespace_lock_1 ();
CREATE TABLE larder_namespace_lock_2 ();
CREATE TABLE larder_namespace_lock_3 ();
CREATE TABLE larder_namespace_lock_4 ();
CREATE TABLE larder_namespace_lock_5 ();
CREATE TABLE larder_namespace_lock_6 ();
CREATE TABLE larder_namespace_lock_7 ();
CREATE TABLE larder_namespace_lock_8 ();
CREATE TABLE larder_namespace_lock_9 ();
CREATE TABLE larder_namespace_lock_10 ();
CREATE TABLE larder_namespace_lock_11 ();
CREATE TABLE larder_namespace_lock_12 ();
CREATE TABLE larder_namespace_lock_13 ();
CREATE TABLE larder_namespace_lock_14 ();
CREATE TABLE larder_namespace_lock_15 ();
