package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// outcome is what became of a spec.
type outcome string

const (
	passed  outcome = "passed"
	failed  outcome = "failed"
	skipped outcome = "skipped"
	// left are specs which were not asked for: benchmarks, and what the focus leaves out.
	left outcome = "left out"
)

// spec is one case of the suite.
type spec struct {
	name    string
	outcome outcome
	// message says why it failed or skipped.
	message string
	// output is what it logged.
	output string
}

// report is what the suite says of a pass.
type report struct {
	specs []spec
	took  time.Duration
	// special are the reasons for a failure that belongs to no spec.
	special []string
}

// readReport reads the JSON report of Ginkgo.
func readReport(file string) (*report, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	return parseReport(data)
}

func parseReport(data []byte) (*report, error) {
	var suites []struct {
		RunTime                    time.Duration
		SpecialSuiteFailureReasons []string
		SpecReports                []struct {
			ContainerHierarchyTexts           []string
			LeafNodeType, LeafNodeText, State string
			CapturedGinkgoWriterOutput        string
			Failure                           struct {
				Message string
			}
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("decode the report: %w", err)
	}
	if len(suites) != 1 {
		return nil, fmt.Errorf("the report is of %d suites instead of one", len(suites))
	}
	r := &report{took: suites[0].RunTime, special: suites[0].SpecialSuiteFailureReasons}
	for _, s := range suites[0].SpecReports {
		texts := append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText)
		one := spec{name: strings.Join(texts, " "), message: s.Failure.Message, output: s.CapturedGinkgoWriterOutput}
		if s.LeafNodeType != "It" {
			if s.State == "passed" {
				continue // set-up and clean-up of the suite
			}
			one.name = s.LeafNodeType
		}
		switch {
		case s.State == "passed":
			one.outcome = passed
		case s.State == "skipped" && one.message == "":
			one.outcome = left
		case s.State == "skipped":
			one.outcome = skipped
		default: // failed, panicked, timed out, interrupted, aborted, pending
			one.outcome, one.message = failed, s.State+": "+one.message
		}
		r.specs = append(r.specs, one)
	}
	if len(r.with(passed))+len(r.with(failed))+len(r.with(skipped)) == 0 {
		return nil, errors.New("the report has no spec that ran")
	}
	return r, nil
}

// with returns the specs of an outcome, by name.
func (r *report) with(o outcome) []spec {
	var found []spec
	for _, s := range r.specs {
		if s.outcome == o {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b spec) int { return strings.Compare(a.name, b.name) })
	return found
}

// problem says what went wrong with the pass as a whole; empty if nothing did.
func (r *report) problem() string { return strings.Join(r.special, "; ") }
