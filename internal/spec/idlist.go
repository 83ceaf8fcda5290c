package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// idRange is a range of CPUs or memory nodes, its ends included.
type idRange struct{ first, last int }

// parseIDList takes apart what idList matches. Of a stepped range only the ends
// are kept.
func parseIDList(text string) ([]idRange, error) {
	var ranges []idRange
	for part := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		part, _, _ = strings.Cut(part, ":")
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, errFirst := strconv.Atoi(from)
		last, errLast := strconv.Atoi(to)
		if err := errors.Join(errFirst, errLast); err != nil {
			return nil, err
		}
		ranges = append(ranges, idRange{first, last})
	}
	return ranges, nil
}

// checkIDList refuses CPUs or memory nodes that this host cannot have; it is
// called with what idList matches. A host of which nothing is known has all.
func checkIDList(field, value, of string) error {
	have, err := parseIDList(of)
	if value == "" || err != nil {
		return nil //nolint:nilerr // it is not known what the host has
	}
	wanted, err := parseIDList(value)
	if err != nil {
		return invalid(field, value, err.Error())
	}
	for _, want := range wanted {
		if want.first > want.last {
			return invalid(field, value, fmt.Sprintf("%d-%d is no range", want.first, want.last))
		}
		within := false
		for _, r := range have {
			within = within || r.first <= want.first && want.last <= r.last
		}
		if !within {
			return unavailable(field, value, "this host has only "+strings.TrimSpace(of))
		}
	}
	return nil
}

// readIDList returns a list that the kernel keeps, "" if it keeps none.
func readIDList(file string) (string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read what the host has: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
