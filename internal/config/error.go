package config

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Error is one thing that is wrong in a configuration. It is an
// errdefs.ErrInvalidArgument.
type Error struct {
	// File is the file it was found in; empty if the value did not come from a file.
	File string
	// Line is where in File, counted from 1; 0 if no line can be given.
	Line int
	// Key is the dotted key, such as "log.level"; empty if the file is no TOML.
	Key string
	// Problem says what is wrong and what would be right.
	Problem string
}

// Error returns "file:line: key: problem" with the parts that are known.
func (e *Error) Error() string {
	var parts []string
	switch {
	case e.File != "" && e.Line > 0:
		parts = append(parts, e.File+":"+strconv.Itoa(e.Line))
	case e.File != "":
		parts = append(parts, e.File)
	}
	if e.Key != "" {
		parts = append(parts, e.Key)
	}
	return strings.Join(append(parts, e.Problem), ": ")
}

// Unwrap makes the error an errdefs.ErrInvalidArgument.
func (e *Error) Unwrap() error { return errdefs.ErrInvalidArgument }

// At makes the error for a key of a file, given with its tables, whose value this host cannot give.
func At(file, problem string, key ...string) error {
	e := &Error{Key: joinKey("", key...), Problem: problem}
	if data, err := readFile(file); err == nil {
		e.File, e.Line = file, keyLines(data).of(e.Key)
	}
	return e
}

// problems collects what is wrong, in any order.
type problems []*Error

func (p *problems) add(key, problem string) {
	*p = append(*p, &Error{Key: key, Problem: problem})
}

// err returns all problems as one error, sorted by where they are, or nil.
func (p problems) err() error {
	slices.SortStableFunc(p, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
	errs := make([]error, len(p))
	for i, e := range p {
		errs[i] = e
	}
	return errors.Join(errs...)
}

// Problems returns the single errors that err, as returned by Load or
// Validate, consists of; nil if it is none of those.
func Problems(err error) []*Error {
	var one *Error
	var many interface{ Unwrap() []error }
	switch {
	case errors.As(err, &many):
		var out []*Error
		for _, e := range many.Unwrap() {
			out = append(out, Problems(e)...)
		}
		return out
	case errors.As(err, &one):
		return []*Error{one}
	}
	return nil
}
