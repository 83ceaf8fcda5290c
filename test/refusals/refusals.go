// Package refusals lists the requests that Berth refuses because of what they say, and what containerd and CRI-O do with
// each. The list is run against the daemon, is a part of docs/cri-support.md and is compared with the code.
package refusals

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
)

//go:embed refusals.txt
var text string

// Refusal is one request that is refused.
type Refusal struct {
	// Line is its line in refusals.txt.
	Line int
	// Call is a method of the CRI, Patch what its request has instead of the usual (RFC 7396).
	Call, Patch string
	Code        codes.Code
	// Words are what the error says.
	Words string
	// Places are the functions that refuse it: package.function.
	Places []string
	// Why, Containerd and CRIO are for the page.
	Why, Containerd, CRIO string
}

// Elsewhere is a number of refusals in a function that no request of the list shows.
type Elsewhere struct {
	Place string
	Count int
	Why   string
}

// All returns the list.
func All() ([]Refusal, []Elsewhere, error) { return parse(text) }

const (
	fields         = 8
	elsewhereField = "elsewhere"
)

// parse reads lines of "call | patch | code | words | places | why | containerd | CRI-O" and of
// "elsewhere | place number, ... | why".
func parse(text string) (list []Refusal, others []Elsewhere, err error) {
	number := 0
	for line := range strings.Lines(text) {
		number++
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.Split(line, " | ")
		if len(parts) == 3 && parts[0] == elsewhereField {
			more, err := parseElsewhere(parts[1], parts[2])
			if err != nil {
				return nil, nil, fmt.Errorf("line %d: %w", number, err)
			}
			others = append(others, more...)
			continue
		}
		if len(parts) != fields {
			return nil, nil, fmt.Errorf("line %d: %d parts, want %d", number, len(parts), fields)
		}
		r := Refusal{Line: number, Call: parts[0], Patch: expand(parts[1]), Words: parts[3], Places: strings.Fields(parts[4]), Why: parts[5], Containerd: parts[6], CRIO: parts[7]}
		if err := r.Code.UnmarshalJSON([]byte(strconv.Quote(strings.ToUpper(snake.ReplaceAllString(parts[2], "${1}_$2"))))); err != nil {
			return nil, nil, fmt.Errorf("line %d: %w", number, err)
		}
		if !json.Valid([]byte(r.Patch)) {
			return nil, nil, fmt.Errorf("line %d: %s is not JSON", number, r.Patch)
		}
		list = append(list, r)
	}
	return list, others, nil
}

func parseElsewhere(places, why string) (list []Elsewhere, err error) {
	for part := range strings.SplitSeq(places, ", ") {
		place, count, _ := strings.Cut(part, " ")
		e := Elsewhere{Place: place, Why: why}
		if e.Count, err = strconv.Atoi(count); err != nil {
			return nil, fmt.Errorf("%q: %w", part, err)
		}
		list = append(list, e)
	}
	return list, nil
}

var (
	snake  = regexp.MustCompile(`([a-z])([A-Z])`)
	repeat = regexp.MustCompile(`<(\d+) (.)>`)
)

// expand writes out "<300 a>".
func expand(patch string) string {
	return repeat.ReplaceAllStringFunc(patch, func(found string) string {
		parts := repeat.FindStringSubmatch(found)
		count, err := strconv.Atoi(parts[1])
		if err != nil {
			return found
		}
		return strings.Repeat(parts[2], count)
	})
}

// Apply returns a request in JSON with the changes of a patch: null removes, and objects are merged.
func Apply(request, patch []byte) ([]byte, error) {
	var have, change any
	if err := json.Unmarshal(request, &have); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if err := json.Unmarshal(patch, &change); err != nil {
		return nil, fmt.Errorf("patch: %w", err)
	}
	return json.Marshal(merge(have, change))
}

func merge(have, change any) any {
	changes, ok := change.(map[string]any)
	if !ok {
		return change
	}
	result, ok := have.(map[string]any)
	if !ok {
		result = map[string]any{}
	}
	for key, value := range changes {
		if value == nil {
			delete(result, key)
			continue
		}
		result[key] = merge(result[key], value)
	}
	return result
}

// Render makes the section of the page.
func Render(list []Refusal, others []Elsewhere) string {
	var b strings.Builder
	b.WriteString(head)
	for _, r := range list {
		fmt.Fprintf(&b, "| %s | `%s` | %s: %s | %s | %s | %s |\n", r.Call, strings.ReplaceAll(short(r.Patch), "|", "\\|"), r.Code, r.Words, r.Why, r.Containerd, r.CRIO)
	}
	b.WriteString(tail)
	count := 0
	for i, e := range others {
		count += e.Count
		if i+1 < len(others) && others[i+1].Why == e.Why {
			continue
		}
		fmt.Fprintf(&b, "| %s | %d |\n", e.Why, count)
		count = 0
	}
	return b.String()
}

// short leaves out the middle of a patch that is long.
func short(patch string) string {
	const limit = 160
	if len(patch) <= limit {
		return patch
	}
	return patch[:limit/2] + "…" + patch[len(patch)-limit/4:]
}

const (
	head = `
## What is refused

<!-- made from test/refusals/refusals.txt by ` + "`make generate`" + ` -->

What containerd 2.4 and CRI-O 1.37 both accept, Berth accepts and gives what they give; a part that it cannot give is a
warning. A request is refused where one of them refuses it too, where Berth would give more rights than it asks for, or
where the row says otherwise. ` + "`TestRefusals`" + ` sends each request to the daemon, as the change of one that is accepted, and
` + "`TestEveryRefusalIsListed`" + ` compares the list with the code.

| call | change of the request | refused with | why | containerd | CRI-O |
|---|---|---|---|---|---|
`
	tail = `
Other refusals do not depend on the request alone, or repeat one above:

| refusals | places in the code |
|---|---|
`
)
