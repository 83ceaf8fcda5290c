// Package service tests berthd as a service of systemd, installed as users install it: with the unit from packaging and
// the default directories. It runs where systemd does and no other berthd is installed, so only on request:
// test/vm does.
package service
