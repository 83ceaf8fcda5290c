package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/yaml"
)

// The values of --output.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

// shortID is how many characters of an ID a table shows.
const shortID = 12

func (a *app) checkFormat() error {
	switch a.format {
	case formatTable, formatJSON, formatYAML:
		return nil
	}
	return &codeError{code: exitUsage, err: fmt.Errorf("--output %q: want table, json or yaml", a.format)}
}

// table is a result for people.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	if len(t.head) > 0 {
		if _, err := fmt.Fprintln(tw, strings.Join(t.head, "\t")); err != nil {
			return err
		}
	}
	for _, row := range t.rows {
		for i, cell := range row {
			row[i] = oneLine(cell)
		}
		if _, err := fmt.Fprintln(tw, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// oneLine keeps what comes from images and pods from moving the cursor.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// show prints a result: v for programs, t for people.
func (a *app) show(v any, t func() *table) error {
	if a.format == formatTable {
		return t().write(a.Out)
	}
	return a.structured(v)
}

// structured prints v as JSON, or as YAML with the same names.
func (a *app) structured(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	text = append(text, '\n')
	if a.format == formatYAML {
		if text, err = yaml.JSONToYAML(text); err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
	}
	_, err = a.Out.Write(text)
	return err
}

// short cuts an ID for a table.
func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	if len(id) > shortID {
		return id[:shortID]
	}
	return id
}

// age says how long ago t was, in the two units that matter.
func (a *app) age(t *time.Time) string {
	if t == nil {
		return "-"
	}
	d := max(0, a.now().Sub(*t))
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d/time.Second)) + "s"
	case d < 10*time.Minute:
		return units(d, time.Minute, "m", time.Second, "s")
	case d < time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	case d < 10*time.Hour:
		return units(d, time.Hour, "h", time.Minute, "m")
	case d < 2*day:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d < 10*day:
		return units(d, day, "d", time.Hour, "h")
	}
	return strconv.Itoa(int(d/day)) + "d"
}

func units(d, big time.Duration, bigName string, small time.Duration, smallName string) string {
	text := strconv.Itoa(int(d/big)) + bigName
	if rest := int(d % big / small); rest > 0 {
		text += strconv.Itoa(rest) + smallName
	}
	return text
}

// size says how large something is, in decimal units.
func size(bytes uint64) string {
	const step = 1000
	value, unit := float64(bytes), "B"
	for _, next := range []string{"kB", "MB", "GB", "TB"} {
		if value < step {
			break
		}
		value, unit = value/step, next
	}
	if unit == "B" {
		return strconv.FormatUint(bytes, 10) + " B"
	}
	return strconv.FormatFloat(value, 'f', 1, 64) + " " + unit
}

// moment turns nanoseconds of the CRI into a time, nil if there is none.
func moment(nanoseconds int64) *time.Time {
	if nanoseconds <= 0 {
		return nil
	}
	t := time.Unix(0, nanoseconds).UTC()
	return &t
}

// orDash shows that a value is absent.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
